//! What peers ask of this node: jobs by `/accel/jobs/1`, their events by `/accel/output/1`.
//!
//! A peer sees only its own jobs. Everything it sends is bounded before it is read, and a peer that reads slowly or not
//! at all costs one stream, never the node.

use std::time::Duration;

use accel_protocol::limits::{INLINE_RESULT_BYTES, REQUESTS_PER_PEER, STREAMS_PER_PEER};
use accel_protocol::message::{JOBS_PROTOCOL, OUTPUT_PROTOCOL};
use accel_protocol::{
    ErrorCode, EventRecord, JobError, JobRequest, JobResponse, JobSpec, OutputRequest, Rejection, frame,
};
use bytes::Bytes;
use futures::StreamExt;
use libp2p::{PeerId, StreamProtocol};
use rust_ipfs::InboundRequestId;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::advert::Advertiser;
use crate::frames::FrameStream;
use crate::jobs::{Jobs, Owner};
use crate::names::Names;
use crate::places::Places;
use crate::swarm::SwarmError;

/// Requests worked on at once.
const REQUESTS: usize = 64;
/// Output streams of all peers together.
const OUTPUT_STREAMS: usize = 256;
/// An opened stream must name its job within this time.
const FIRST_FRAME: Duration = Duration::from_secs(10);
/// A peer that takes nothing for so long loses the stream; it may open another and resume.
const SLOW_READER: Duration = Duration::from_secs(60);
/// A job of at most this many tokens, or one that answers whole, may be answered in one piece,
const SHORT_JOB_TOKENS: u32 = 8;
/// if it ends within this time.
const SHORT_JOB_WAIT: Duration = Duration::from_secs(2);

/// Answers peers until `stop`.
///
/// # Errors
/// When the swarm has stopped.
pub async fn run(advertiser: Advertiser, names: Names, stop: CancellationToken) -> Result<(), SwarmError> {
    let ipfs = advertiser.swarm.ipfs().clone();
    let protocol = |error: rust_ipfs::Error| SwarmError::Ipfs { doing: "serve peers", message: format!("{error:#}") };
    let mut requests = ipfs.requests_subscribe(StreamProtocol::new(JOBS_PROTOCOL)).await.map_err(protocol)?;
    let mut streams = ipfs.new_stream(OUTPUT_PROTOCOL).await.map_err(protocol)?;
    let at_once = Places::new(REQUESTS, REQUESTS_PER_PEER);
    let open = Places::new(OUTPUT_STREAMS, STREAMS_PER_PEER);
    let at_work = TaskTracker::new();
    loop {
        tokio::select! {
            () = stop.cancelled() => {
                // Readers of a job's last events are served to the end; whoever stops the node bounds the wait.
                at_work.close();
                at_work.wait().await;
                return Ok(());
            }
            Some((peer, id, bytes)) = requests.next() => {
                let Some(place) = at_once.enter(peer) else {
                    let busy = rejected(ErrorCode::OutOfResources, "too many requests at once", Some(1_000));
                    respond(&advertiser, peer, id, &busy).await;
                    continue;
                };
                let (advertiser, names) = (advertiser.clone(), names.clone());
                at_work.spawn(async move {
                    let response = answer(&advertiser, &names, peer, &bytes).await;
                    respond(&advertiser, peer, id, &response).await;
                    drop(place);
                });
            }
            Some((peer, stream)) = streams.next() => {
                let Some(place) = open.enter(peer) else {
                    tracing::debug!(%peer, "too many output streams are open; one more was dropped");
                    continue;
                };
                let jobs = advertiser.scheduler.jobs().clone();
                at_work.spawn(async move {
                    if let Err(error) = send_events(jobs, peer, FrameStream::new(peer, stream)).await {
                        tracing::debug!(%peer, %error, "an output stream broke");
                    }
                    drop(place);
                });
            }
        }
    }
}

async fn respond(advertiser: &Advertiser, peer: PeerId, id: InboundRequestId, response: &JobResponse) {
    let bytes = match frame::encode(response) {
        Ok(bytes) => bytes,
        Err(error) => return tracing::error!(%peer, %error, "an answer cannot be encoded"),
    };
    let send =
        advertiser.swarm.ipfs().send_response(peer, id, (StreamProtocol::new(JOBS_PROTOCOL), Bytes::from(bytes)));
    if let Err(error) = send.await {
        tracing::debug!(%peer, %error, "an answer could not be sent");
    }
}

async fn answer(advertiser: &Advertiser, names: &Names, peer: PeerId, bytes: &[u8]) -> JobResponse {
    let request = match frame::decode::<JobRequest>(bytes) {
        Ok(request) => request,
        Err(error) => return rejected(ErrorCode::InvalidRequest, &error.to_string(), None),
    };
    let jobs = advertiser.scheduler.jobs();
    match request {
        JobRequest::Submit(spec) => submit(advertiser, peer, *spec).await,
        JobRequest::Status(id) => JobResponse::Status(jobs.get(id, Owner::Peer(peer)).map(|job| job.status())),
        JobRequest::Cancel(id) => {
            let job = jobs.get(id, Owner::Peer(peer));
            if let Some(job) = &job {
                job.stop();
            }
            JobResponse::Cancelled(job.is_some())
        }
        JobRequest::Offer(request) => {
            let models = advertiser.scheduler.models();
            match models.coordinator().offer(&request, models.idle_bytes()).await {
                Ok(offer) => JobResponse::Offer(Box::new(offer)),
                Err(error) => JobResponse::Rejected(error.into()),
            }
        }
        JobRequest::Name(request) => JobResponse::Name(names.told(&request).map(Box::new)),
        JobRequest::Capabilities(theirs) => {
            advertiser.swarm.peers().hear(peer, *theirs);
            match advertiser.advert().await {
                Ok(ours) => JobResponse::Capabilities(Box::new(ours)),
                Err(error) => rejected(ErrorCode::Internal, &error.to_string(), None),
            }
        }
    }
}

async fn submit(advertiser: &Advertiser, peer: PeerId, spec: JobSpec) -> JobResponse {
    let job = match advertiser.scheduler.accept(peer, spec) {
        Ok(job) => job,
        Err(rejection) => return JobResponse::Rejected(rejection),
    };
    if job.spec.generation.max_tokens <= SHORT_JOB_TOKENS || !job.spec.task.is_generation() {
        // A job that takes longer is not lost: its events are read as a stream.
        let ended = tokio::time::timeout(SHORT_JOB_WAIT, job.log.end()).await.is_ok();
        if ended
            && let Ok((events, true)) = job.log.since(0)
            && fits_inline(&events)
        {
            return JobResponse::Accepted { job: job.spec.id, events };
        }
    }
    JobResponse::Accepted { job: job.spec.id, events: Vec::new() }
}

fn fits_inline(events: &Vec<EventRecord>) -> bool {
    frame::encode(events).is_ok_and(|bytes| bytes.len() <= INLINE_RESULT_BYTES)
}

fn rejected(code: ErrorCode, message: &str, retry_after_ms: Option<u64>) -> JobResponse {
    JobResponse::Rejected(Rejection { error: JobError::new(code, message), retry_after_ms })
}

async fn send_events(jobs: Jobs, peer: PeerId, mut stream: FrameStream) -> Result<(), SwarmError> {
    let silent = |within| move |_| SwarmError::Silent { peer, within };
    let request: Option<OutputRequest> =
        tokio::time::timeout(FIRST_FRAME, stream.receive()).await.map_err(silent(FIRST_FRAME))??;
    let Some(OutputRequest { job, mut from }) = request else { return Ok(()) };
    let Some(job) = jobs.get(job, Owner::Peer(peer)) else {
        return send_failure(&mut stream, from, ErrorCode::UnknownJob, "this job is not known here").await;
    };
    loop {
        let events = match job.log.next(from).await {
            Ok(events) => events,
            Err(lost) => return send_failure(&mut stream, from, ErrorCode::UnknownJob, &lost.to_string()).await,
        };
        if events.is_empty() {
            break;
        }
        for record in events {
            from = record.number + 1;
            tokio::time::timeout(SLOW_READER, stream.send(&record)).await.map_err(silent(SLOW_READER))??;
        }
    }
    stream.close().await;
    Ok(())
}

async fn send_failure(stream: &mut FrameStream, number: u64, code: ErrorCode, message: &str) -> Result<(), SwarmError> {
    let event = accel_protocol::JobEvent::Failed { error: JobError::new(code, message) };
    stream.send(&EventRecord { number, event }).await?;
    stream.close().await;
    Ok(())
}
