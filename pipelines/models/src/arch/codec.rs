//! Codecs of sound, one file each.

pub mod encodec;
