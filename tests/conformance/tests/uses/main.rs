//! One definition, used in several ways: token by token, in a ragged batch, in two stages, and with experts elsewhere.
//! Each gives the same bits as a whole sequence read at once and alone. So do weights that are stored in another way.

#![expect(clippy::unwrap_used, clippy::panic, reason = "a test that fails should say where")]

mod decoders;
mod encoders;
mod experts;
mod kept;
mod stages;
mod stored;
mod whole;
