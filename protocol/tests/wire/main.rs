//! What peers' bytes may do to this program, and what its own bytes look like.
//!
//! The snapshot holds the bytes of one of each message. A change of it is a change of the protocol: peers of the
//! version before would no longer understand, so the protocol's number has to change with it.

#![expect(clippy::unwrap_used, reason = "what fails here fails the test, helpers included")]

mod generated;

use std::fmt::Write;

use accel_protocol::limits::FRAME_BYTES;
use accel_protocol::{
    Advert, EventRecord, ExpertRequest, JobId, JobRequest, JobResponse, ModelRef, OutputRequest, ShareReply,
    StageRequest, frame,
};
use proptest::prelude::*;
use serde::Serialize;
use serde::de::DeserializeOwned;

/// Decode what may be anything; what decodes must encode to at most as many bytes, and decode to the same again.
fn decode_anything<T: Serialize + DeserializeOwned>(bytes: &[u8]) {
    if let Ok(value) = frame::decode::<T>(bytes) {
        let again = frame::encode(&value).unwrap();
        assert!(again.len() <= bytes.len(), "{} bytes became {}", bytes.len(), again.len());
        // Bytes and not values are compared, because a NaN is not equal to itself.
        assert_eq!(frame::encode(&frame::decode::<T>(&again).unwrap()).unwrap(), again);
    }
}

fn decode_as_every_message(bytes: &[u8]) {
    decode_anything::<JobRequest>(bytes);
    decode_anything::<JobResponse>(bytes);
    decode_anything::<EventRecord>(bytes);
    decode_anything::<OutputRequest>(bytes);
    decode_anything::<Advert>(bytes);
    decode_anything::<ExpertRequest>(bytes);
    decode_anything::<StageRequest>(bytes);
    decode_anything::<ShareReply>(bytes);
}

/// `bytes` with some of them overwritten and the end cut off.
fn damaged(mut bytes: Vec<u8>, damage: &[(usize, u8)], keep: usize) -> Vec<u8> {
    for &(place, value) in damage {
        let length = bytes.len();
        bytes[place % length] = value;
    }
    let length = bytes.len();
    bytes.truncate(length - keep % 4 % length);
    bytes
}

fn returns_unchanged<T: Serialize + DeserializeOwned + PartialEq + std::fmt::Debug>(value: &T) {
    let framed = frame::frame(value).unwrap();
    let (prefix, body) = framed.split_at(frame::PREFIX_BYTES);
    assert_eq!(frame::body_length(prefix.try_into().unwrap()).unwrap(), body.len());
    assert_eq!(&frame::decode::<T>(body).unwrap(), value);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]

    #[test]
    fn any_bytes_are_a_value_or_an_error(bytes in proptest::collection::vec(any::<u8>(), 0..512)) {
        decode_as_every_message(&bytes);
    }

    #[test]
    fn damaged_messages_are_a_value_or_an_error(
        request in generated::request(),
        response in generated::response(),
        experts in generated::expert_request(),
        stages in generated::stage_request(),
        share in generated::share_reply(),
        damage in proptest::collection::vec((any::<usize>(), any::<u8>()), 1..4),
        keep in any::<usize>(),
    ) {
        decode_as_every_message(&damaged(frame::encode(&request).unwrap(), &damage, keep));
        decode_as_every_message(&damaged(frame::encode(&response).unwrap(), &damage, keep));
        decode_as_every_message(&damaged(frame::encode(&experts).unwrap(), &damage, keep));
        decode_as_every_message(&damaged(frame::encode(&stages).unwrap(), &damage, keep));
        decode_as_every_message(&damaged(frame::encode(&share).unwrap(), &damage, keep));
    }

    #[test]
    fn messages_return_unchanged(
        request in generated::request(),
        response in generated::response(),
        experts in generated::expert_request(),
        stages in generated::stage_request(),
        share in generated::share_reply(),
    ) {
        returns_unchanged(&request);
        returns_unchanged(&response);
        returns_unchanged(&experts);
        returns_unchanged(&stages);
        returns_unchanged(&share);
    }

    #[test]
    fn job_ids_are_their_text(bytes in any::<[u8; 16]>()) {
        let id = JobId(bytes);
        prop_assert_eq!(id.to_string().parse::<JobId>().unwrap(), id);
        prop_assert_eq!(id.to_string().to_uppercase().parse::<JobId>().unwrap(), id);
    }

    #[test]
    fn any_text_is_a_job_id_or_an_error(text in "\\PC{0,40}") {
        if let Ok(id) = text.parse::<JobId>() {
            prop_assert_eq!(id.to_string(), text.to_lowercase());
        }
    }

    #[test]
    fn model_names_are_their_text(model in generated::model()) {
        prop_assert_eq!(&model.to_string().parse::<ModelRef>().unwrap(), &model);
        prop_assert_eq!(&format!("ipfs://{model}").parse::<ModelRef>().unwrap(), &model);
        prop_assert_eq!(&format!("/ipfs/{model}/").parse::<ModelRef>().unwrap(), &model);
    }

    #[test]
    fn no_model_name_steps_out_of_its_root(model in generated::model(), path in "[a./ \\\\]{0,12}") {
        if let Ok(found) = format!("{}/{path}", model.cid).parse::<ModelRef>() {
            prop_assert!(!found.path.starts_with('/'));
            prop_assert!(found.path.is_empty() || found.path.split('/').all(|part| !["", ".", ".."].contains(&part)));
        }
    }

    #[test]
    fn any_text_is_a_model_or_an_error(text in "\\PC{0,80}") {
        if let Ok(model) = text.parse::<ModelRef>() {
            prop_assert_eq!(model.to_string().parse::<ModelRef>().unwrap(), model);
        }
    }
}

#[test]
fn a_length_that_is_not_true_is_refused() {
    // Rejected, then an error code, then a text of 2^64 - 1 bytes; and accepted with as many events.
    let endless = [0xfd, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff];
    let text = [&[1, 0][..], &endless].concat();
    let events = [&[0][..], &[0; 16], &endless].concat();
    assert!(frame::decode::<JobResponse>(&text).is_err());
    assert!(frame::decode::<JobResponse>(&events).is_err());
    // The same with a length that is over the bytes that follow and under the limit.
    let long = [0xfc, 0x00, 0x00, 0x0f, 0x00];
    assert!(frame::decode::<JobResponse>(&[&[1, 0][..], &long].concat()).is_err());
    assert!(frame::decode::<JobResponse>(&[&[0][..], &[0; 16], &long].concat()).is_err());
}

#[test]
fn frames_are_bounded() {
    let limit = u32::try_from(FRAME_BYTES).unwrap();
    assert_eq!(frame::body_length(limit.to_be_bytes()).unwrap(), FRAME_BYTES);
    assert!(frame::body_length((limit + 1).to_be_bytes()).is_err());
    assert!(frame::decode::<JobRequest>(&vec![0; FRAME_BYTES + 1]).is_err());
    assert!(frame::encode(&"x".repeat(FRAME_BYTES)).is_err());
    let left_over = [frame::encode(&JobRequest::Cancel(JobId([7; 16]))).unwrap(), vec![0]].concat();
    assert!(matches!(frame::decode::<JobRequest>(&left_over), Err(frame::FrameError::Trailing { left: 1 })));
}

/// Many small events, each two bytes on the wire and dozens in memory. The limit counts integers at their full width, so
/// that such a frame is given up long before its end.
#[test]
#[cfg(target_os = "linux")]
fn a_hostile_frame_takes_bounded_memory() {
    let peak_bytes = || -> u64 {
        let status = std::fs::read_to_string("/proc/self/status").unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
        line.trim().strip_suffix(" kB").unwrap().parse::<u64>().unwrap() * 1024
    };
    let cancelled = frame::encode(&EventRecord { number: 0, event: accel_protocol::JobEvent::Cancelled }).unwrap();
    let count = FRAME_BYTES / cancelled.len() - 16;
    let mut bytes = [&[0][..], &[0; 16], &[0xfc], &u32::try_from(count).unwrap().to_le_bytes()].concat();
    (0..count).for_each(|_| bytes.extend_from_slice(&cancelled));
    let before = peak_bytes();
    assert!(matches!(frame::decode::<JobResponse>(&bytes), Err(frame::FrameError::Malformed(_))));
    let grown = peak_bytes() - before;
    assert!(grown <= 32 * FRAME_BYTES as u64, "{grown} bytes for a frame of {}", bytes.len());
}

#[test]
fn bytes_of_each_message() {
    let mut text = String::new();
    for (name, bytes) in generated::one_of_each() {
        let hex: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
        writeln!(text, "{name}: {hex}").unwrap();
    }
    insta::assert_snapshot!(text);
}
