//! Every bound on what a peer may send, with its reason.

/// A frame on any protocol of ours. Prompts up to a long context travel inline; larger inputs travel by CID.
pub const FRAME_BYTES: usize = 1 << 20;
/// An input larger than this travels by CID, so that a submission stays well inside a frame.
pub const INLINE_INPUT_BYTES: usize = 256 << 10;
/// An input that travels by CID: the text of the longest contexts in use, with room.
pub const BLOB_INPUT_BYTES: u64 = 64 << 20;
/// Results up to this size come inside the answer to a submission.
pub const INLINE_RESULT_BYTES: usize = 64 << 10;
/// An advert: gossip repeats it to every peer, so it must stay small.
pub const ADVERT_BYTES: usize = 4 << 10;
/// Models named in one advert, so that it stays small.
pub const ADVERT_MODELS: usize = 24;
/// Addresses in one advert, so that it stays small.
pub const ADVERT_ADDRESSES: usize = 8;
/// Path of a model below its root.
pub const MODEL_PATH_BYTES: usize = 512;
/// A model's name.
pub const MODEL_NAME_BYTES: usize = 128;
/// What a peer says of one of its names: the name, a model with its path, and two times.
pub const NAME_RECORD_BYTES: usize = 1 << 10;
/// The life of what a peer says of one of its names; whoever passes it on may do so for that long.
pub const NAME_LIFE_MS: u64 = 24 * 60 * 60 * 1000;
/// Words of an error.
pub const ERROR_TEXT_BYTES: usize = 2 << 10;
/// Tokens of one answer: the longest contexts in use.
pub const ANSWER_TOKENS: u32 = 1 << 17;
/// Name of an arithmetic: it travels in every advert and beside every answer.
pub const ARITHMETIC_BYTES: usize = 128;
/// Stop texts of one job.
pub const STOP_TEXTS: usize = 16;
/// Bytes of one stop text: it is compared at every token.
pub const STOP_TEXT_BYTES: usize = 256;
/// The highest temperature; well below it every token is as likely as any other.
pub const TEMPERATURE: f32 = 100.0;
/// The strongest repetition penalty, and by its inverse the strongest reward.
pub const REPETITION_PENALTY: f32 = 100.0;
/// Alternatives reported with each token, as OpenAI's interface allows.
pub const TOP_LOGPROBS: u8 = 20;
/// Texts of one job, as OpenAI's interface allows.
pub const TEXTS: usize = 2048;
/// The likeliest of anything that are reported.
pub const TOP_RESULTS: u32 = 1 << 16;
/// Results of one job, so that its last event stays well inside a frame.
pub const RESULT_BYTES: usize = 768 << 10;
/// Steps of a painting: many times what the slowest sampler needs.
pub const PAINTING_STEPS: u32 = 1000;
/// Width and height of a painting, in pixels.
pub const PAINTING_SIDE: u32 = 4096;
/// How closely a painting may keep to its text; well below it, nothing but the text is left.
pub const PAINTING_GUIDANCE: f32 = 100.0;
/// Bytes of the name of a language.
pub const LANGUAGE_BYTES: usize = 64;
/// Pictures of a conversation.
pub const PICTURES: usize = 64;
/// Turns of a conversation.
pub const CHAT_MESSAGES: usize = 4096;
/// Events of a job are kept this long after it ended, for streams that resume.
pub const EVENTS_KEPT_MS: u64 = 10 * 60 * 1000;
/// Events of a job are kept up to this size.
pub const EVENTS_KEPT_BYTES: usize = 4 << 20;
/// The longest that a job may take.
pub const DEADLINE_MS_MAX: u64 = 24 * 60 * 60 * 1000;
/// Streams that one peer may hold open for a protocol.
pub const STREAMS_PER_PEER: usize = 64;
/// Requests of one peer that are worked on at the same time; more are refused, so peers ask no more at once.
pub const REQUESTS_PER_PEER: usize = 16;
/// The life of an advert; one that claims more than twice as much is dropped, since clocks differ.
pub const ADVERT_LIFE_MS: u64 = 2 * 60 * 1000;
/// Bytes of the name of a way to store weights.
pub const DTYPE_BYTES: usize = 32;
/// Experts that one request may have held: those of the largest mixtures in use.
pub const SHARE_EXPERTS: usize = 1 << 16;
/// Requests under way on one stream for a share of a model; more are not read before one of these is answered.
pub const SHARE_REQUESTS: usize = 64;
/// Streams for shares of models that one peer may hold open: one for each model that it works on.
pub const SHARE_STREAMS_PER_PEER: usize = 16;
/// Bytes of rows that wait on one stream for the rest of their passes through a stage.
pub const STAGE_PIECES_BYTES: usize = 16 << 20;
/// Bytes of rows in one piece, or at the end of a pass with all that is told of it.
pub const STAGE_PIECE_BYTES: usize = FRAME_BYTES / 4 * 3;
/// Sequences in one pass through a stage, and slots of what is kept.
pub const STAGE_SEQUENCES: usize = 1024;
/// Layers of one stage, and peers that its experts may be asked of.
pub const STAGE_LAYERS: u32 = 1024;
/// Choices of routers that one message tells: whole numbers, which count at their full width.
pub const ROUTED_CHOICES: usize = FRAME_BYTES / 8;
/// States that one holding keeps sequences in.
pub const STAGE_STATES: usize = 1024;

/// Rows of so many numbers that fit the frame of a request or an answer about a share of a model, each with its place.
pub const fn share_rows(numbers: usize) -> usize {
    /// Everything in the frame but rows and places.
    const REST_BYTES: usize = 1 << 10;
    // A place is two whole numbers, which count at their full width.
    let row_bytes = 4 * numbers + 16;
    (FRAME_BYTES - REST_BYTES) / row_bytes
}
