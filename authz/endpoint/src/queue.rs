//! Audit records of the direct path, kept until the hub has them: in files, in order, bounded.
//!
//! Each line has a number of its own; a file is named after its first. An endpoint appends; its agent gives what the hub
//! has not got, and removes whole files that it has. When there is no room calls are refused: no call goes unrecorded.

use crate::{limits, shelf};
use std::{
    fs::{self, File},
    io::{self, BufRead, BufReader, Read, Write},
    path::{Path, PathBuf},
};

/// Where records are kept.
#[derive(Debug, Clone)]
pub struct Queue {
    dir: PathBuf,
    /// Tells this queue from another that began anew.
    id: String,
}

/// Some records, as lines.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Batch {
    /// Number of the last record in it; the one asked for, where there are none.
    pub last: u64,
    /// Lines of JSON.
    pub lines: Vec<u8>,
}

impl Queue {
    /// The queue in `dir`, made where it is missing.
    ///
    /// # Errors
    /// It cannot be.
    pub fn open(dir: &Path) -> io::Result<Self> {
        shelf::make_private(dir)?;
        let path = dir.join("id");
        let id = match fs::read_to_string(&path) {
            Ok(id) if id.len() == 32 => id,
            Ok(_) => new_id(&path)?,
            Err(e) if e.kind() == io::ErrorKind::NotFound => new_id(&path)?,
            Err(e) => return Err(e),
        };
        Ok(Self { dir: dir.to_owned(), id })
    }

    /// Its name.
    pub fn id(&self) -> &str {
        &self.id
    }

    /// Files, by the number of their first record.
    fn files(&self) -> io::Result<Vec<(u64, PathBuf)>> {
        let mut all: Vec<_> = fs::read_dir(&self.dir)?
            .flatten()
            .filter_map(|entry| {
                let name = entry.file_name().into_string().ok()?;
                Some((name.strip_suffix(".jsonl")?.parse().ok()?, entry.path()))
            })
            .collect();
        all.sort();
        Ok(all)
    }

    /// Bytes that wait.
    ///
    /// # Errors
    /// The folder cannot be read.
    pub fn bytes(&self) -> io::Result<u64> {
        Ok(self.files()?.iter().filter_map(|(_, path)| fs::metadata(path).ok()).map(|found| found.len()).sum())
    }

    /// What comes after the record `after`, at most [`limits::DELIVERY`] bytes of it and at least one record.
    ///
    /// # Errors
    /// The folder cannot be read.
    pub fn after(&self, after: u64) -> io::Result<Batch> {
        let files = self.files()?;
        let mut batch = Batch { last: after, lines: Vec::new() };
        for (at, (first, path)) in files.iter().enumerate() {
            let next = files.get(at + 1).map(|(first, _)| *first);
            if next.is_some_and(|next| next <= after + 1) {
                continue;
            }
            let mut reader = BufReader::new(File::open(path)?);
            let (mut number, mut line) = (*first, Vec::new());
            loop {
                line.clear();
                // What has no end is being written, or was when its writer died.
                if reader.read_until(b'\n', &mut line)? == 0 || line.last() != Some(&b'\n') {
                    break;
                }
                if after < number {
                    if !batch.lines.is_empty() && limits::DELIVERY < batch.lines.len() + line.len() {
                        return Ok(batch);
                    }
                    batch.lines.extend_from_slice(&line);
                    batch.last = number;
                }
                number += 1;
            }
        }
        Ok(batch)
    }

    /// The hub has everything up to `upto`: files that hold nothing else go, but the one that is written.
    ///
    /// # Errors
    /// The folder cannot be changed.
    pub fn forget(&self, upto: u64) -> io::Result<()> {
        let files = self.files()?;
        for pair in files.windows(2) {
            if let [(_, path), (next, _)] = pair
                && *next <= upto.saturating_add(1)
            {
                fs::remove_file(path)?;
            }
        }
        Ok(())
    }

    /// A writer, for [`moorline_proxy::audit::FileSink::to_writer`]. There is one at a time.
    ///
    /// # Errors
    /// The folder cannot be read.
    pub fn writer(&self) -> io::Result<Writer> {
        let next = match self.files()?.last() {
            Some((first, path)) => {
                let mut lines = 0;
                let mut reader = BufReader::new(File::open(path)?);
                let mut line = Vec::new();
                while reader.by_ref().read_until(b'\n', &mut line)? > 0 && line.last() == Some(&b'\n') {
                    lines += 1;
                    line.clear();
                }
                if lines == 0 {
                    // Nothing whole is in it: the name is free.
                    fs::remove_file(path)?;
                }
                first + lines
            }
            None => 1,
        };
        Ok(Writer { queue: self.clone(), file: None, next, size: 0, waiting: self.bytes()? })
    }
}

fn new_id(path: &Path) -> io::Result<String> {
    let id = format!("{:032x}", rand::random::<u128>());
    shelf::write(path, id.as_bytes())?;
    Ok(id)
}

impl moorline_proxy::audit::files::Output for Writer {}

/// Appends whole lines.
pub struct Writer {
    queue: Queue,
    file: Option<File>,
    next: u64,
    size: u64,
    waiting: u64,
}

impl Write for Writer {
    /// Takes all of it or nothing.
    fn write(&mut self, lines: &[u8]) -> io::Result<usize> {
        let more = lines.len() as u64;
        if limits::QUEUE < self.waiting + more {
            self.waiting = self.queue.bytes()?;
            if limits::QUEUE < self.waiting + more {
                return Err(io::Error::new(io::ErrorKind::StorageFull, "the hub has not taken the records before"));
            }
        }
        if limits::SEGMENT < self.size {
            self.file = None;
        }
        if self.file.is_none() {
            let path = self.queue.dir.join(format!("{:020}.jsonl", self.next));
            let mut options = fs::OpenOptions::new();
            options.append(true).create_new(true);
            #[cfg(unix)]
            std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
            (self.file, self.size) = (Some(options.open(path)?), 0);
        }
        let Some(file) = &mut self.file else { return Err(io::ErrorKind::NotFound.into()) };
        file.write_all(lines)?;
        self.next += lines.iter().filter(|b| **b == b'\n').count() as u64;
        (self.size, self.waiting) = (self.size + more, self.waiting + more);
        Ok(lines.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lines(from: u64, to: u64) -> String {
        (from..=to).map(|n| format!("{{\"n\":{n}}}\n")).collect()
    }

    fn texts(batch: &Batch) -> (u64, String) {
        (batch.last, String::from_utf8(batch.lines.clone()).unwrap())
    }

    #[test]
    fn records_come_once_and_in_order_over_restarts() {
        let dir = tempfile::tempdir().unwrap();
        let queue = Queue::open(dir.path()).unwrap();
        queue.writer().unwrap().write_all(lines(1, 3).as_bytes()).unwrap();
        assert_eq!(texts(&queue.after(0).unwrap()), (3, lines(1, 3)));
        assert_eq!(texts(&queue.after(2).unwrap()), (3, lines(3, 3)));
        // A writer that died in the middle of a line, and the next one.
        let first = queue.files().unwrap()[0].1.clone();
        fs::OpenOptions::new().append(true).open(&first).unwrap().write_all(b"{\"n\":").unwrap();
        let again = Queue::open(dir.path()).unwrap();
        assert_eq!(again.id(), queue.id());
        again.writer().unwrap().write_all(lines(4, 5).as_bytes()).unwrap();
        assert_eq!(texts(&queue.after(0).unwrap()), (5, lines(1, 5)));
        queue.forget(3).unwrap();
        assert!(!first.exists());
        assert_eq!(texts(&queue.after(3).unwrap()), (5, lines(4, 5)));
        queue.forget(5).unwrap();
        assert_eq!(queue.after(5).unwrap(), Batch { last: 5, lines: Vec::new() });
        queue.writer().unwrap().write_all(lines(6, 6).as_bytes()).unwrap();
        assert_eq!(texts(&queue.after(5).unwrap()), (6, lines(6, 6)));
    }

    #[test]
    fn f49_a_full_queue_takes_nothing_until_the_hub_has_taken_some() {
        let dir = tempfile::tempdir().unwrap();
        let queue = Queue::open(dir.path()).unwrap();
        let mut writer = queue.writer().unwrap();
        let mut line = vec![b'x'; 1 << 20];
        line.push(b'\n');
        let mut written = 0;
        while writer.write(&line).is_ok() {
            written += 1;
        }
        assert_eq!(written, 63, "64 MiB, and each line is a byte over one");
        assert!(writer.write(&line).is_err());
        let some = queue.after(0).unwrap();
        assert_eq!((some.last, some.lines.len()), (1, line.len()), "no more at once than a delivery");
        queue.forget(20).unwrap();
        assert!(writer.write(&line).is_ok());
    }
}
