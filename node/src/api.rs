//! The loopback interface: how to reach it, what travels over it, and the client that the command line uses.
//!
//! What takes long answers in lines of JSON: any number of `progress`, then one `result` or one `error`. The daemon
//! writes its address and a secret into a file that only its owner can read, so other users of the machine and pages
//! in a browser cannot use it.

mod body;

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use accel_protocol::{ErrorCode, EventRecord, JobError, JobId, JobStatus, ModelName, ModelRef};
use bytes::{Buf, BytesMut};
use futures::stream::{BoxStream, StreamExt};
use percent_encoding::{AsciiSet, CONTROLS, utf8_percent_encode};
use reqwest::{Method, StatusCode};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

pub use crate::names::Named;
pub use body::{
    AddRequest, Added, ContentsView, Cut, ExpertsView, FilePart, FreedView, HolderView, HubBody, HubPulled, JobBody,
    LayerExpertsView, Line, LoadBody, LoadedView, MemberView, ModelParts, ModelView, NodeView, PlanBody, PlanView,
    PredictionView, Pulled, Reach, Split, SpreadView, StageView, TensorPart, Transfer, WayView, default_deadline_ms,
};

/// Prefix of every path.
pub const PREFIX: &str = "/accel/v1";
/// Name of the file, in the data directory, that says how to reach the daemon.
pub const ACCESS_FILE: &str = "api.json";
/// A daemon that says nothing for so long does not run.
const ANSWERS_WITHIN: Duration = Duration::from_secs(10);
/// A node that goes into another swarm first ends its jobs or hands them over.
const STARTS_WITHIN: Duration = Duration::from_secs(120);
const LOOK_AGAIN: Duration = Duration::from_millis(50);
/// What cannot stand for itself in a path of a URL.
const IN_A_PATH: &AsciiSet = &CONTROLS.add(b' ').add(b'"').add(b'#').add(b'%').add(b'<').add(b'>').add(b'?').add(b'`');
/// Bytes of one line of an answer.
const LINE_BYTES: usize = 16 << 20;

/// How to reach a daemon.
#[derive(Clone, Serialize, Deserialize)]
pub struct Access {
    /// Its address.
    pub address: SocketAddr,
    /// The secret that every request must carry.
    pub token: String,
}

impl std::fmt::Debug for Ready {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Ready").field("peer", &self.peer).field("api", &self.api).finish_non_exhaustive()
    }
}

impl std::fmt::Debug for Access {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Access").field("address", &self.address).finish_non_exhaustive()
    }
}

/// What a daemon prints once it is ready, so that whoever started it knows how to reach it.
#[derive(Clone, Serialize, Deserialize)]
pub struct Ready {
    /// Its id.
    pub peer: String,
    /// Where it listens, with its id.
    pub addresses: Vec<String>,
    /// Its loopback interface.
    pub api: SocketAddr,
    /// The secret of its loopback interface; only in JSON, for the process that started it.
    pub token: String,
}

/// A call that failed.
#[derive(Debug, thiserror::Error)]
pub enum ApiError {
    /// No daemon runs on this data directory.
    #[error("no daemon runs on {}; start one with accel-node", data_dir.display())]
    NoDaemon {
        /// The data directory.
        data_dir: PathBuf,
    },
    /// The daemon cannot be reached.
    #[error("the daemon at {address} cannot be reached: {source}")]
    Unreachable {
        /// Its address.
        address: SocketAddr,
        /// Why.
        #[source]
        source: reqwest::Error,
    },
    /// The daemon says no.
    #[error("{0}")]
    Refused(#[from] JobError),
    /// The answer is not what it should be.
    #[error("the daemon answered something that cannot be read: {0}")]
    Answer(String),
}

/// Bytes that a daemon sends.
#[derive(Debug)]
pub struct Download {
    address: SocketAddr,
    response: reqwest::Response,
    /// How many there are.
    pub bytes: u64,
}

impl Download {
    /// The next of them; none at the end.
    ///
    /// # Errors
    /// When the daemon breaks off; its log says why.
    pub async fn next(&mut self) -> Result<Option<bytes::Bytes>, ApiError> {
        let address = self.address;
        self.response.chunk().await.map_err(|source| ApiError::Unreachable { address, source })
    }
}

/// A client of a daemon's loopback interface.
#[derive(Clone, Debug)]
pub struct Api {
    access: Access,
    http: reqwest::Client,
}

impl Api {
    /// A client of the daemon that `access` names.
    pub fn new(access: Access) -> Self {
        let http = crate::tls::loopback();
        Self { access, http }
    }

    /// A client of the daemon that runs on `data_dir`.
    ///
    /// # Errors
    /// When none runs there.
    pub async fn of(data_dir: &Path) -> Result<Self, ApiError> {
        let none = || ApiError::NoDaemon { data_dir: data_dir.to_owned() };
        let text = tokio::fs::read_to_string(data_dir.join(ACCESS_FILE)).await.map_err(|_| none())?;
        let access: Access = serde_json::from_str(&text).map_err(|_| none())?;
        let api = Self::new(access);
        // A daemon that was killed leaves its file behind.
        match tokio::time::timeout(ANSWERS_WITHIN, api.node()).await {
            Ok(Ok(_)) => Ok(api),
            Ok(Err(_)) | Err(_) => Err(none()),
        }
    }

    async fn send(
        &self,
        method: Method,
        path: &str,
        body: Option<&impl Serialize>,
    ) -> Result<reqwest::Response, ApiError> {
        let request = self.request(method, path);
        self.answered(match body {
            Some(body) => request.json(body),
            None => request,
        })
        .await
    }

    fn request(&self, method: Method, path: &str) -> reqwest::RequestBuilder {
        let url = format!("http://{}{PREFIX}{path}", self.access.address);
        self.http.request(method, url).bearer_auth(&self.access.token)
    }

    async fn answered(&self, request: reqwest::RequestBuilder) -> Result<reqwest::Response, ApiError> {
        let address = self.access.address;
        let response = request.send().await.map_err(|source| ApiError::Unreachable { address, source })?;
        if response.status() == StatusCode::OK {
            return Ok(response);
        }
        let status = response.status();
        let text = response.text().await.map_err(|source| ApiError::Unreachable { address, source })?;
        match serde_json::from_str::<Line<(), ()>>(&text) {
            Ok(Line::Error(error)) => Err(error.into()),
            _ => Err(ApiError::Answer(format!("{status}: {}", text.chars().take(200).collect::<String>()))),
        }
    }

    async fn call<R: DeserializeOwned>(
        &self,
        method: Method,
        path: &str,
        body: Option<&impl Serialize>,
    ) -> Result<R, ApiError> {
        self.read(self.send(method, path, body).await?).await
    }

    async fn read<R: DeserializeOwned>(&self, response: reqwest::Response) -> Result<R, ApiError> {
        let address = self.access.address;
        let bytes = response.bytes().await.map_err(|source| ApiError::Unreachable { address, source })?;
        serde_json::from_slice(&bytes).map_err(|error| ApiError::Answer(error.to_string()))
    }

    async fn get<R: DeserializeOwned>(&self, path: &str) -> Result<R, ApiError> {
        self.call(Method::GET, path, None::<&()>).await
    }

    /// The node itself.
    ///
    /// # Errors
    /// As all calls: when the daemon cannot be reached or says no.
    pub async fn node(&self) -> Result<NodeView, ApiError> {
        self.get("/node").await
    }

    /// Who is there.
    ///
    /// # Errors
    /// As all calls.
    pub async fn peers(&self) -> Result<Vec<crate::peers::PeerView>, ApiError> {
        self.get("/peers").await
    }

    /// Connects to a peer.
    ///
    /// # Errors
    /// As all calls.
    pub async fn connect(&self, address: &str) -> Result<String, ApiError> {
        self.call(Method::POST, "/peers", Some(&address)).await
    }

    /// Has the daemon go into the swarm that its data directory names, and waits until it is there.
    ///
    /// # Errors
    /// As all calls; also when it stops instead of starting again.
    pub async fn reload(&self) -> Result<NodeView, ApiError> {
        let start: u64 = self.call(Method::POST, "/swarm/reload", None::<&()>).await?;
        let begun = Instant::now();
        loop {
            match self.node().await {
                Ok(node) if node.starts >= start => return Ok(node),
                // A connection to the node that stops may end with it.
                Err(error) if begun.elapsed() > STARTS_WITHIN => return Err(error),
                _ => tokio::time::sleep(LOOK_AGAIN).await,
            }
        }
    }

    /// The devices of this machine.
    ///
    /// # Errors
    /// As all calls.
    pub async fn hardware(&self) -> Result<Vec<accel_protocol::Device>, ApiError> {
        self.get("/hardware").await
    }

    /// The pinned models.
    ///
    /// # Errors
    /// As all calls.
    pub async fn models(&self) -> Result<Vec<ModelView>, ApiError> {
        self.get("/models").await
    }

    /// A model and its parts; `fetch` gets the headers of one that is not here.
    ///
    /// # Errors
    /// As all calls.
    pub async fn model(&self, model: &ModelRef, fetch: bool) -> Result<ModelParts, ApiError> {
        self.get(&format!("{}?fetch={fetch}", path_of(model))).await
    }

    /// The model that a text names.
    ///
    /// # Errors
    /// As all calls; also where nothing is called so.
    pub async fn resolve(&self, text: &str) -> Result<ModelRef, ApiError> {
        self.get(&escaped("/names/", text)).await
    }

    /// Gives a model a name.
    ///
    /// # Errors
    /// As all calls.
    pub async fn set_name(&self, name: &ModelName, model: &ModelRef) -> Result<Named, ApiError> {
        self.call(Method::PUT, &escaped("/names/", name), Some(model)).await
    }

    /// Takes a name away.
    ///
    /// # Errors
    /// As all calls; also where there is no such name.
    pub async fn remove_name(&self, name: &ModelName) -> Result<Named, ApiError> {
        self.call(Method::DELETE, &escaped("/names/", name), None::<&()>).await
    }

    /// The models in memory.
    ///
    /// # Errors
    /// As all calls.
    pub async fn loaded(&self) -> Result<Vec<LoadedView>, ApiError> {
        self.get("/loaded").await
    }

    /// Brings a model into memory; none where another has taken its room since.
    ///
    /// # Errors
    /// As all calls.
    pub async fn load(
        &self,
        model: &ModelRef,
        body: LoadBody,
        progress: impl FnMut(Transfer),
    ) -> Result<Option<LoadedView>, ApiError> {
        let response = self.send(Method::POST, &escaped("/loaded/", model), Some(&body)).await?;
        finish(self.access.address, response, progress).await
    }

    /// Drops a model from memory.
    ///
    /// # Errors
    /// As all calls; also where it is not there, or at work.
    pub async fn unload(&self, model: &ModelRef) -> Result<LoadedView, ApiError> {
        self.call(Method::DELETE, &escaped("/loaded/", model), None::<&()>).await
    }

    /// Unpins a model and frees what no other holds.
    ///
    /// # Errors
    /// As all calls.
    pub async fn remove(&self, model: &ModelRef) -> Result<FreedView, ApiError> {
        self.call(Method::DELETE, &path_of(model), None::<&()>).await
    }

    /// Frees what no model holds.
    ///
    /// # Errors
    /// As all calls.
    pub async fn collect(&self) -> Result<FreedView, ApiError> {
        self.call(Method::POST, "/gc", None::<&()>).await
    }

    /// How a model would run; with `keep`, how it will.
    ///
    /// # Errors
    /// As all calls.
    pub async fn plan(&self, model: &ModelRef, body: &PlanBody) -> Result<PlanView, ApiError> {
        self.call(Method::POST, &escaped("/plans/", model), Some(body)).await
    }

    /// The models that are at work on several machines.
    ///
    /// # Errors
    /// As all calls.
    pub async fn spread(&self) -> Result<Vec<SpreadView>, ApiError> {
        self.get("/spread").await
    }

    /// What a model's experts were chosen for on this node.
    ///
    /// # Errors
    /// As all calls; also for a model that has no experts.
    pub async fn experts(&self, model: &ModelRef) -> Result<ExpertsView, ApiError> {
        self.get(&escaped("/experts/", model)).await
    }

    /// Imports a file or directory.
    ///
    /// # Errors
    /// As all calls.
    pub async fn add(&self, request: &AddRequest, progress: impl FnMut(Transfer)) -> Result<Added, ApiError> {
        let response = self.send(Method::POST, "/models", Some(request)).await?;
        finish(self.access.address, response, progress).await
    }

    /// The files that a CID names, whatever they are.
    ///
    /// # Errors
    /// As all calls.
    pub async fn contents(&self, model: &ModelRef) -> Result<ContentsView, ApiError> {
        self.get(&escaped("/contents/", model)).await
    }

    /// A model as a CAR file.
    ///
    /// # Errors
    /// As all calls; also where it is not here whole.
    pub async fn car(&self, model: &ModelRef) -> Result<Download, ApiError> {
        self.download(&escaped("/cars/", model)).await
    }

    /// A file of a model, or a model that is one.
    ///
    /// # Errors
    /// As all calls; also where it is not here whole.
    pub async fn file(&self, model: &ModelRef) -> Result<Download, ApiError> {
        self.download(&escaped("/files/", model)).await
    }

    async fn download(&self, path: &str) -> Result<Download, ApiError> {
        let address = self.access.address;
        let response = self.answered(self.request(Method::GET, path)).await?;
        Ok(Download { address, bytes: response.content_length().unwrap_or_default(), response })
    }

    /// Imports a CAR file, and calls what it holds `name`.
    ///
    /// # Errors
    /// As all calls.
    pub async fn import_car(&self, name: &str, car: reqwest::Body) -> Result<Vec<Added>, ApiError> {
        let request = self.request(Method::POST, "/cars").query(&[("name", name)]).body(car);
        self.read(self.answered(request).await?).await
    }

    /// Fetches a model.
    ///
    /// # Errors
    /// As all calls.
    pub async fn pull(&self, model: &ModelRef, progress: impl FnMut(Transfer)) -> Result<Pulled, ApiError> {
        let response = self.send(Method::POST, &path_of(model), None::<&()>).await?;
        finish(self.access.address, response, progress).await
    }

    /// Downloads a model from the Hugging Face hub, imports and names it.
    ///
    /// # Errors
    /// As all calls.
    pub async fn pull_from_hub(&self, body: &HubBody, progress: impl FnMut(Transfer)) -> Result<HubPulled, ApiError> {
        let response = self.send(Method::POST, "/hub", Some(body)).await?;
        finish(self.access.address, response, progress).await
    }

    /// Submits a job; its events follow, also when the connection breaks in between.
    ///
    /// # Errors
    /// As all calls.
    pub async fn submit(&self, body: &JobBody) -> Result<EventStream, ApiError> {
        let id = body.id.unwrap_or_else(|| JobId(rand::random()));
        let response = self.send(Method::POST, "/jobs", Some(&JobBody { id: Some(id), ..body.clone() })).await?;
        Ok(self.resuming(id, 0, response))
    }

    /// Jobs under way, and those that ended a short while ago.
    ///
    /// # Errors
    /// As all calls.
    pub async fn jobs(&self) -> Result<Vec<JobStatus>, ApiError> {
        self.get("/jobs").await
    }

    /// Where a job stands.
    ///
    /// # Errors
    /// As all calls.
    pub async fn job(&self, id: JobId) -> Result<JobStatus, ApiError> {
        self.get(&format!("/jobs/{id}")).await
    }

    /// The events of a job, from number `from` on, also when the connection breaks in between.
    ///
    /// # Errors
    /// As all calls.
    pub async fn events(&self, id: JobId, from: u64) -> Result<EventStream, ApiError> {
        Ok(self.resuming(id, from, self.open_events(id, from).await?))
    }

    async fn open_events(&self, id: JobId, from: u64) -> Result<reqwest::Response, ApiError> {
        self.send(Method::GET, &format!("/jobs/{id}/events?from={from}"), None::<&()>).await
    }

    /// The events that `response` brings. One that ends or breaks before the job's last event is asked for again, from
    /// the next event on; when that brings nothing either, the stream ends as it did.
    fn resuming(&self, id: JobId, from: u64, response: reqwest::Response) -> EventStream {
        let address = self.access.address;
        let reading =
            Reading { api: self.clone(), events: lines(address, response), next: from, fresh: false, ended: false };
        futures::stream::try_unfold(reading, move |mut reading| async move {
            loop {
                if reading.ended {
                    return Ok(None);
                }
                match reading.events.next().await {
                    Some(Ok(record)) => {
                        reading.next = record.number + 1;
                        reading.fresh = false;
                        reading.ended = record.event.is_last();
                        return Ok(Some((record, reading)));
                    }
                    Some(Err(error)) if reading.fresh => return Err(error),
                    None if reading.fresh => return Ok(None),
                    Some(Err(_)) | None => {
                        reading.events = lines(address, reading.api.open_events(id, reading.next).await?);
                        reading.fresh = true;
                    }
                }
            }
        })
        .boxed()
    }

    /// Cancels a job.
    ///
    /// # Errors
    /// As all calls.
    pub async fn cancel(&self, id: JobId) -> Result<JobStatus, ApiError> {
        self.call(Method::DELETE, &format!("/jobs/{id}"), None::<&()>).await
    }
}

/// The events of a job as they come.
pub type EventStream = BoxStream<'static, Result<EventRecord, ApiError>>;

/// How far a job's events have been read.
struct Reading {
    api: Api,
    events: EventStream,
    next: u64,
    /// Whether the stream was just opened again and has brought nothing yet.
    fresh: bool,
    ended: bool,
}

/// The path of a model, whose own path may hold what means something in a URL.
fn path_of(model: &ModelRef) -> String {
    escaped("/models/", model)
}

fn escaped(place: &str, name: impl std::fmt::Display) -> String {
    format!("{place}{}", utf8_percent_encode(&name.to_string(), IN_A_PATH))
}

async fn finish<R: DeserializeOwned + Send + 'static>(
    address: SocketAddr,
    response: reqwest::Response,
    mut progress: impl FnMut(Transfer),
) -> Result<R, ApiError> {
    let mut lines = lines::<Line<Transfer, R>>(address, response);
    while let Some(line) = lines.next().await {
        match line? {
            Line::Progress(transfer) => progress(transfer),
            Line::Result(result) => return Ok(result),
            Line::Error(error) => return Err(error.into()),
        }
    }
    let message = "the daemon broke off before the work was done";
    Err(JobError::new(ErrorCode::Internal, message).into())
}

/// The values that an answer holds, one a line.
fn lines<T: DeserializeOwned + Send + 'static>(
    address: SocketAddr,
    response: reqwest::Response,
) -> BoxStream<'static, Result<T, ApiError>> {
    let state = (response.bytes_stream(), BytesMut::new());
    futures::stream::try_unfold(state, move |(mut bytes, mut buffer)| async move {
        loop {
            if let Some(end) = buffer.iter().position(|byte| *byte == b'\n') {
                let line = buffer.split_to(end);
                buffer.advance(1);
                let value = serde_json::from_slice(&line).map_err(|error| ApiError::Answer(error.to_string()))?;
                return Ok(Some((value, (bytes, buffer))));
            }
            if buffer.len() > LINE_BYTES {
                return Err(ApiError::Answer(format!("a line is over {LINE_BYTES} bytes")));
            }
            match bytes.next().await {
                Some(Ok(more)) => buffer.extend_from_slice(&more),
                Some(Err(source)) => return Err(ApiError::Unreachable { address, source }),
                None if buffer.is_empty() => return Ok(None),
                None => return Err(ApiError::Answer("the last line is cut off".to_owned())),
            }
        }
    })
    .boxed()
}
