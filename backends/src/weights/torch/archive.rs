//! The zip archive around a checkpoint: what lies where. Nothing in it is packed, for then it could not be read by range.

use std::collections::BTreeMap;

use super::super::{HEADER_BYTES_MAX, NAME_BYTES_MAX, TENSORS_MAX, WeightsError};
use crate::files::{ModelFiles, file_bytes};

/// Files of an archive: a storage for each tensor, and some beside.
const ENTRIES_MAX: u64 = TENSORS_MAX + 64;
const END_BYTES: usize = 22;
const END64_BYTES: usize = 56;
const LOCATOR_BYTES: usize = 20;
const CENTRAL_BYTES: usize = 46;
const LOCAL_BYTES: u64 = 30;
/// A comment may follow what ends an archive.
const COMMENT_MAX: u64 = u16::MAX as u64;
/// Stands where a number has no room and is found elsewhere.
const ELSEWHERE: u64 = u32::MAX as u64;

/// A file of the archive.
#[derive(Clone, Debug)]
pub(super) struct Entry {
    /// Where its own header begins.
    header: u64,
    bytes: u64,
    /// Neither packed nor encrypted.
    plain: bool,
}

/// The files of an archive by their names.
pub(super) struct Archive<'a> {
    files: &'a dyn ModelFiles,
    file: &'a str,
    file_bytes: u64,
    entries: BTreeMap<String, Entry>,
}

impl<'a> Archive<'a> {
    /// Reads the list at the end of the file.
    pub(super) fn open(files: &'a dyn ModelFiles, file: &'a str) -> Result<Self, WeightsError> {
        let file_bytes = file_bytes(files, file).unwrap_or(0);
        let mut archive = Self { files, file, file_bytes, entries: BTreeMap::new() };
        let (count, offset, bytes) = archive.directory()?;
        for (what, limit, found) in
            [("files in an archive", ENTRIES_MAX, count), ("the list of an archive in bytes", HEADER_BYTES_MAX, bytes)]
        {
            if found > limit {
                return Err(WeightsError::TooLarge { file: file.into(), what, limit, found });
            }
        }
        let list = archive.bytes("the list of an archive", offset, bytes)?;
        let mut rest = list.as_slice();
        for _ in 0..count {
            rest = archive.entry(offset + (list.len() - rest.len()) as u64, rest)?;
        }
        Ok(archive)
    }

    /// How many files there are, and where the list of them lies.
    fn directory(&self) -> Result<(u64, u64, u64), WeightsError> {
        let tail = self.file_bytes.min(END_BYTES as u64 + COMMENT_MAX);
        let begin = self.file_bytes - tail;
        let text = self.bytes("the end of an archive", begin, tail)?;
        let is_end = |place: &usize| {
            text[*place..].starts_with(b"PK\x05\x06")
                && number(&text[*place..], 20, 2).is_some_and(|comment| *place as u64 + 22 + comment == tail)
        };
        let last = text.len().checked_sub(END_BYTES).into_iter().flat_map(|last| (0..=last).rev()).find(is_end);
        let end = last.ok_or_else(|| self.malformed(begin, "the archive has no end; it is probably truncated"))?;
        let at = |place, bytes| number(&text[end..], place, bytes).unwrap_or_default();
        let (count, bytes, offset) = (at(10, 2), at(12, 4), at(16, 4));
        if count != u64::from(u16::MAX) && bytes != ELSEWHERE && offset != ELSEWHERE {
            return Ok((count, offset, bytes));
        }
        let place = begin + end as u64;
        let no_64 = || self.malformed(place, "expected the place of a larger end before the end of the archive");
        let locator = place.checked_sub(LOCATOR_BYTES as u64).ok_or_else(no_64)?;
        let text = self.bytes("the place of the end", locator, LOCATOR_BYTES as u64)?;
        if !text.starts_with(b"PK\x06\x07") {
            return Err(no_64());
        }
        let place = number(&text, 8, 8).unwrap_or_default();
        let text = self.bytes("the end of an archive", place, END64_BYTES as u64)?;
        if !text.starts_with(b"PK\x06\x06") {
            return Err(self.malformed(place, "expected the end of a large archive"));
        }
        let at = |place| number(&text, place, 8).unwrap_or_default();
        Ok((at(32), at(48), at(40)))
    }

    /// Takes one entry of the list, and gives what follows.
    fn entry<'t>(&mut self, place: u64, text: &'t [u8]) -> Result<&'t [u8], WeightsError> {
        let cut = || self.malformed(place, "the list of the archive is cut off");
        if !text.starts_with(b"PK\x01\x02") {
            return Err(self.malformed(place, "expected another file in the list of the archive"));
        }
        let at = |place, bytes| number(text, place, bytes).ok_or_else(cut);
        let (flags, method, name_bytes, extra_bytes) = (at(8, 2)?, at(10, 2)?, at(28, 2)?, at(30, 2)?);
        let (mut packed, mut bytes, mut header) = (at(20, 4)?, at(24, 4)?, at(42, 4)?);
        let name_end = CENTRAL_BYTES + name_bytes as usize;
        let extra_end = name_end + extra_bytes as usize;
        let name = text.get(CENTRAL_BYTES..name_end).ok_or_else(cut)?;
        let extra = text.get(name_end..extra_end).ok_or_else(cut)?;
        let rest = text.get(extra_end + at(32, 2)? as usize..).ok_or_else(cut)?;
        // What had no room stands here, in this order.
        let mut large = large_numbers(extra).unwrap_or_default();
        for value in [&mut bytes, &mut packed, &mut header] {
            if *value == ELSEWHERE {
                (*value, large) = number(large, 0, 8).map(|value| (value, &large[8..])).ok_or_else(cut)?;
            }
        }
        let name = std::str::from_utf8(name).ok().filter(|name| name.len() as u64 <= NAME_BYTES_MAX);
        let name = name.ok_or_else(|| self.malformed(place, "the name of a file in the archive is none"))?.to_owned();
        let plain = method == 0 && flags & 1 == 0 && packed == bytes;
        if self.entries.insert(name.clone(), Entry { header, bytes, plain }).is_some() {
            return Err(self.malformed(place, format!("{name} is twice in the archive")));
        }
        Ok(rest)
    }

    /// The file of that name in the one folder that the archive has, with the folder's name.
    pub(super) fn entry_at_top(&self, name: &str) -> Result<(String, &Entry), WeightsError> {
        let is_it = |path: &str| path.split_once('/').is_some_and(|(_, rest)| rest == name);
        let mut found = self.entries.iter().filter(|(path, _)| is_it(path));
        match (found.next(), found.next()) {
            (Some((path, entry)), None) => Ok((path[..path.len() - name.len()].to_owned(), entry)),
            _ => Err(self.malformed(0, format!("expected one {name} in the archive"))),
        }
    }

    /// Where the bytes of a file of the archive begin, and how many there are.
    pub(super) fn place(&self, name: &str) -> Result<(u64, u64), WeightsError> {
        let missing = || self.malformed(0, format!("the archive has no {name}"));
        self.place_of(self.entries.get(name).ok_or_else(missing)?)
    }

    fn place_of(&self, entry: &Entry) -> Result<(u64, u64), WeightsError> {
        let Entry { header, bytes, plain } = *entry;
        if !plain {
            return Err(self.malformed(header, "this file of the archive is packed, which is not supported"));
        }
        // Its own header may have other additions than the list.
        let text = self.bytes("the header of a file", header, LOCAL_BYTES)?;
        if !text.starts_with(b"PK\x03\x04") {
            return Err(self.malformed(header, "expected the header of a file of the archive"));
        }
        let additions = number(&text, 26, 2).unwrap_or_default() + number(&text, 28, 2).unwrap_or_default();
        let begin = header + LOCAL_BYTES + additions;
        if bytes > self.file_bytes.saturating_sub(begin) {
            let (what, file_bytes) = ("a file of the archive", self.file_bytes);
            return Err(WeightsError::Truncated {
                file: self.file.into(),
                what,
                offset: begin,
                needed: bytes,
                file_bytes,
            });
        }
        Ok((begin, bytes))
    }

    /// The bytes of a file of the archive, and where they begin.
    pub(super) fn contents(&self, entry: &Entry, limit: u64) -> Result<(u64, Vec<u8>), WeightsError> {
        let (begin, bytes) = self.place_of(entry)?;
        if bytes > limit {
            let what = "a file of the archive in bytes";
            return Err(WeightsError::TooLarge { file: self.file.into(), what, limit, found: bytes });
        }
        Ok((begin, self.bytes("a file of the archive", begin, bytes)?))
    }

    /// The bytes of a small file of the archive, if it is there.
    pub(super) fn small(&self, name: &str, limit: u64) -> Result<Option<Vec<u8>>, WeightsError> {
        self.entries.get(name).map(|entry| Ok(self.contents(entry, limit)?.1)).transpose()
    }

    pub(super) fn malformed(&self, offset: u64, reason: impl Into<String>) -> WeightsError {
        WeightsError::Malformed { file: self.file.into(), offset, reason: reason.into() }
    }

    /// Bytes of the file, once they are known to be there.
    fn bytes(&self, what: &'static str, offset: u64, bytes: u64) -> Result<Vec<u8>, WeightsError> {
        if offset.checked_add(bytes).is_none_or(|end| end > self.file_bytes) {
            let (file, file_bytes) = (self.file.to_owned(), self.file_bytes);
            return Err(WeightsError::Truncated { file, what, offset, needed: bytes, file_bytes });
        }
        let mut buffer = vec![0; bytes as usize];
        let fault = |source| WeightsError::Read { file: self.file.into(), offset, bytes, source };
        self.files.read_at(self.file, offset, &mut buffer).map_err(fault)?;
        Ok(buffer)
    }
}

/// A little-endian number of up to eight bytes.
fn number(text: &[u8], place: usize, bytes: usize) -> Option<u64> {
    let text = text.get(place..place.checked_add(bytes)?)?;
    Some(text.iter().rev().fold(0, |number, byte| number << 8 | u64::from(*byte)))
}

/// The addition with numbers of eight bytes, among those that an entry has.
fn large_numbers(mut extra: &[u8]) -> Option<&[u8]> {
    const LARGE: u64 = 1;
    loop {
        let (kind, bytes) = (number(extra, 0, 2)?, number(extra, 2, 2)? as usize);
        let (addition, rest) = extra.get(4..)?.split_at_checked(bytes)?;
        if kind == LARGE {
            return Some(addition);
        }
        extra = rest;
    }
}
