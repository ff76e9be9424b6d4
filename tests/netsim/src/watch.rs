//! An answer that does not end, line by line. Whatever cut it into chunks on its way (RFC 9112 §7.1), a line is whole.

use crate::LONG;
use anyhow::{Context, Result};
use tokio::{
    io::{AsyncBufRead, AsyncBufReadExt},
    time::timeout,
};

/// What of the answer comes next.
enum Part {
    /// Lines of its head, or of how long the next chunk is.
    Head,
    Size,
    /// So many bytes of a chunk.
    Data(usize),
}

/// See the module.
pub struct Watch<R> {
    from: R,
    part: Part,
    line: Vec<u8>,
    /// A line of what is no data.
    around: Vec<u8>,
}

impl<R: AsyncBufRead + Unpin> Watch<R> {
    /// Of an answer whose first byte is yet to be read.
    pub fn new(from: R) -> Self {
        Self { from, part: Part::Head, line: Vec::new(), around: Vec::new() }
    }

    /// The next line that begins so; the rest of it. `None`: the answer ended, or broke off.
    ///
    /// # Errors
    /// Neither a line nor an end in time: it hangs.
    pub async fn next(&mut self, begin: &str) -> Result<Option<String>> {
        loop {
            match timeout(LONG, self.line()).await.context("the answer hangs")? {
                None => return Ok(None),
                Some(line) => {
                    if let Some(rest) = line.strip_prefix(begin) {
                        return Ok(Some(rest.to_owned()));
                    }
                }
            }
        }
    }

    /// Nothing is lost where this is not waited for to its end.
    async fn line(&mut self) -> Option<String> {
        loop {
            let byte = *self.from.fill_buf().await.ok()?.first()?;
            self.from.consume(1);
            match (&mut self.part, byte) {
                (Part::Data(left), byte) => {
                    *left -= 1;
                    if *left == 0 {
                        self.part = Part::Size;
                    }
                    match byte {
                        b'\n' => return String::from_utf8(std::mem::take(&mut self.line)).ok(),
                        byte => self.line.push(byte),
                    }
                }
                (_, b'\r') => {}
                (Part::Head, b'\n') => {
                    if std::mem::take(&mut self.around).is_empty() {
                        self.part = Part::Size;
                    }
                }
                // The end of the chunk before.
                (Part::Size, b'\n') if self.around.is_empty() => {}
                (Part::Size, b'\n') => {
                    let size = String::from_utf8(std::mem::take(&mut self.around)).ok()?;
                    match usize::from_str_radix(&size, 16).ok()? {
                        0 => return None,
                        size => self.part = Part::Data(size),
                    }
                }
                (Part::Head | Part::Size, byte) => self.around.push(byte),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_line_is_whole_wherever_it_was_cut() {
        let answer = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n\
                      7\r\ntick 0\n\r\n2\r\nti\r\n5\r\nck 1\n\r\nd\r\ntick 2\ntick 3\r\n1\r\n\n\r\n0\r\n\r\n";
        let mut watch = Watch::new(answer.as_bytes());
        for tick in ["0", "1", "2", "3"] {
            assert_eq!(watch.next("tick ").await.unwrap().as_deref(), Some(tick));
        }
        assert_eq!(watch.next("tick ").await.unwrap(), None);
    }
}
