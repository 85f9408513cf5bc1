//! Files of text that people write: the configuration, keys, secrets, passwords, certificates.

use std::fs;
use std::io::{self, ErrorKind};
use std::path::Path;

/// What some editors put before a text in UTF-8, and what is no part of it.
const BYTE_ORDER_MARK: &[u8] = b"\xef\xbb\xbf";

/// What stands before a text in UTF-16, as PowerShell and older editors of Windows write it.
const UTF_16: [&[u8]; 2] = [b"\xff\xfe", b"\xfe\xff"];

/// Reads a file of text, without the byte order mark at its start.
///
/// # Errors
///
/// Those of reading it, and one where it is not UTF-8.
pub fn read(path: &Path) -> io::Result<String> {
    let not_text = |_| io::Error::new(ErrorKind::InvalidData, "it is not UTF-8");
    String::from_utf8(read_bytes(path)?).map_err(not_text)
}

/// The same of a file in which a reader of its own looks for text, as for PEM.
///
/// # Errors
///
/// Those of reading it, and one where it is UTF-16.
pub fn read_bytes(path: &Path) -> io::Result<Vec<u8>> {
    without_mark(fs::read(path)?)
}

/// A text without the mark.
///
/// # Errors
///
/// When it is UTF-16.
pub fn without_mark(mut bytes: Vec<u8>) -> io::Result<Vec<u8>> {
    if UTF_16.iter().any(|mark| bytes.starts_with(mark)) {
        let why = "it is UTF-16; save it as UTF-8";
        return Err(io::Error::new(ErrorKind::InvalidData, why));
    }
    if bytes.starts_with(BYTE_ORDER_MARK) {
        bytes.drain(..BYTE_ORDER_MARK.len());
    }
    Ok(bytes)
}

/// Whether a file begins with the mark, for readers that open it themselves.
pub fn has_mark(path: &Path) -> bool {
    fs::read(path).is_ok_and(|bytes| bytes.starts_with(BYTE_ORDER_MARK))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_byte_order_mark_is_no_part_of_a_text() {
        let file = tempfile::NamedTempFile::new().unwrap();
        for (bytes, expected) in [
            (&b"a\n"[..], Ok("a\n")),
            (b"\xef\xbb\xbfa", Ok("a")),
            (b"\xef\xbb\xbf", Ok("")),
            (b"a\xef\xbb\xbf", Ok("a\u{feff}")),
            (b"\xef\xbb\xbf\xef\xbb\xbfa", Ok("\u{feff}a")),
            (b"", Ok("")),
            (b"\xff\xfea\0", Err("it is UTF-16; save it as UTF-8")),
            (b"\xfe\xff\0a", Err("it is UTF-16; save it as UTF-8")),
            (b"\xffa", Err("it is not UTF-8")),
        ] {
            fs::write(file.path(), bytes).unwrap();
            let read = read(file.path()).map_err(|error| error.to_string());
            assert_eq!(read.as_deref().map_err(|error| &**error), expected);
        }
        assert!(read(Path::new("/no/such/file")).is_err());
    }
}
