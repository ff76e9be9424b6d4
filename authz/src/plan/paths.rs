//! The paths that plans and edge policies name: absolute, as Unix or as Windows writes them, and going nowhere but down.
//!
//! The rules are the same wherever they are asked, for the hub does not know what a node runs: a path of one system is no
//! path on the other, and an agent refuses it there.

/// Longest path, in bytes.
const MAX_LEN: usize = 4096;
/// What no name on Windows has; a `:` would name another stream of a file.
const NOT_IN_NAMES: [char; 7] = ['<', '>', ':', '"', '|', '?', '*'];
/// What Windows puts before a path that it has followed to its end.
const VERBATIM: &str = r"\\?\";

/// A path in its parts.
struct Parts<'a> {
    /// On Windows: the drive's letter.
    drive: Option<u8>,
    names: Vec<&'a str>,
}

impl Parts<'_> {
    fn same(&self, a: &str, b: &str) -> bool {
        // Windows holds more letters for one than these. What is allowed to it is named in the owner's words, so who is
        // stricter than it allows nothing that was not meant.
        if self.drive.is_some() { a.eq_ignore_ascii_case(b) } else { a == b }
    }

    fn is_below(&self, folder: &Parts<'_>) -> bool {
        self.drive == folder.drive
            && folder.names.len() <= self.names.len()
            && folder.names.iter().zip(&self.names).all(|(a, b)| self.same(a, b))
    }
}

/// What comes after a drive, and its letter.
fn on_drive(path: &str) -> Option<(u8, &str)> {
    match path.as_bytes() {
        [drive, b':', b'\\' | b'/', ..] if drive.is_ascii_alphabetic() => {
            Some((drive.to_ascii_lowercase(), path.get(3..).unwrap_or_default()))
        }
        _ => None,
    }
}

fn parts(path: &str) -> Option<Parts<'_>> {
    if MAX_LEN < path.len() || path.contains('\0') {
        return None;
    }
    let parts = match on_drive(path) {
        Some((drive, rest)) => Parts { drive: Some(drive), names: rest.split(['\\', '/']).collect() },
        None => Parts { drive: None, names: path.strip_prefix('/')?.split('/').collect() },
    };
    let plain = |name: &&str| !matches!(*name, "" | "." | "..") && (parts.drive.is_none() || is_windows_name(name));
    parts.names.iter().all(plain).then_some(parts)
}

/// A name that Windows takes as it stands: it drops dots and blanks at the end, and some names are devices in each folder.
fn is_windows_name(name: &str) -> bool {
    let stem = name.split('.').next().unwrap_or_default().trim_end().to_ascii_uppercase();
    let numbered = stem.strip_prefix("COM").or_else(|| stem.strip_prefix("LPT"));
    let mut number = numbered.unwrap_or_default().chars();
    let device = matches!(stem.as_str(), "CON" | "PRN" | "AUX" | "NUL" | "CONIN$" | "CONOUT$")
        || matches!((number.next(), number.next()), (Some('0'..='9' | '¹' | '²' | '³'), None));
    !device && !name.ends_with(['.', ' ']) && !name.contains(NOT_IN_NAMES) && !name.contains(|c: char| c < ' ')
}

/// An absolute path that goes nowhere but down, of Unix (`/a/b`) or of Windows (`C:\a\b` or `C:/a/b`).
pub fn is_plain(path: &str) -> bool {
    parts(path).is_some()
}

/// Whether it is one of Windows'.
pub fn is_windows(path: &str) -> bool {
    on_drive(path).is_some()
}

/// Without what separates folders at its end.
pub(crate) fn trimmed(folder: &str) -> &str {
    folder.trim_end_matches(|c| c == '/' || (c == '\\' && is_windows(folder)))
}

/// Whether two plain paths are one.
pub(crate) fn is_same(a: &str, b: &str) -> bool {
    match (parts(a), parts(b)) {
        (Some(a), Some(b)) => a.names.len() == b.names.len() && a.is_below(&b),
        _ => false,
    }
}

/// Whether a plain path is this folder or below it.
pub(crate) fn is_below(path: &str, folder: &str) -> bool {
    match (parts(path), parts(trimmed(folder))) {
        (Some(path), Some(folder)) => path.is_below(&folder),
        _ => false,
    }
}

/// A path as Windows gives it once links are followed, as it is usually written. Others are as they were.
pub fn without_verbatim(path: &str) -> &str {
    path.strip_prefix(VERBATIM).filter(|rest| is_windows(rest)).unwrap_or(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_plain_path_is_absolute_and_goes_nowhere_but_down() {
        for good in ["/a", "/a/b.c", r"/a\b", "/a:b", r"C:\a", r"c:\a\b c.d", "C:/a/b", r"C:\a/b", "/CON"] {
            assert!(is_plain(good), "{good}");
        }
        for bad in ["", "a", "a/b", "/", "//a", "/a//b", "/a/", "/a/.", "/a/../b", "/a\0b"] {
            assert!(!is_plain(bad), "{bad:?}");
        }
        assert!(is_plain(&format!("/{}", "a".repeat(MAX_LEN - 1))) && !is_plain(&format!("/{}", "a".repeat(MAX_LEN))));
    }

    #[test]
    fn what_windows_would_read_otherwise_is_no_path() {
        for bad in [
            r"C:\",
            "C:",
            "C:a",
            r"C:\a\",
            r"C:\a\\b",
            r"C:\a\..\b",
            r"C:\a/../b",
            r"C:\.\a",
            r"1:\a",
            r"CC:\a",
            r"\a",
            r"\\server\share\a",
            r"\\?\C:\a",
            r"\\.\C:\a",
            r"\??\C:\a",
            r"C:\a:stream",
            r"C:\a.txt::$DATA",
            r"C:\a.",
            r"C:\a ",
            r"C:\a.\b",
            r"C:\a*",
            r"C:\a?",
            "C:\\a\tb",
            r"C:\nul",
            r"C:\NUL.txt",
            r"C:\a\Com1.log",
            r"C:\LPT²",
            r"C:\con .x",
            r"C:\CONIN$",
        ] {
            assert!(!is_plain(bad), "{bad:?}");
        }
        for good in [r"C:\console", r"C:\com", r"C:\com10", r"C:\null", r"C:\.a", r"C:\a.b.c"] {
            assert!(is_plain(good), "{good:?}");
        }
    }

    #[test]
    fn on_windows_a_folder_is_the_same_in_whatever_case_and_by_either_stroke() {
        for (path, folder) in [
            (r"C:\Work\a", r"c:\work"),
            (r"c:\WORK", r"C:\Work\"),
            ("C:/work/a/b", r"C:\work\a\"),
            (r"C:\work\a", "C:/work/"),
            (r"C:\wörk\a", r"C:\wörk"),
            ("/a/b", "/a/"),
            ("/a", "/a"),
        ] {
            assert!(is_below(path, folder), "{path} in {folder}");
        }
        for (path, folder) in [
            (r"C:\workshop\a", r"C:\work"),
            (r"D:\work\a", r"C:\work"),
            (r"C:\", r"C:\work"),
            (r"C:\work\..\other", r"C:\work"),
            (r"C:\work\a", r"C:\"),
            (r"C:\work\a", "/work"),
            ("/work/a", r"C:\work"),
            ("/Work/a", "/work"),
            (r"/work\a", "/work"),
            // Windows has letters of more scripts in two cases, but not one that only Unicode takes for a k.
            ("C:\\wor\u{212a}\\a", r"C:\work"),
        ] {
            assert!(!is_below(path, folder), "{path} in {folder}");
        }
        assert!(is_same(r"C:\Windows\System32\sc.exe", r"c:/windows/system32/SC.EXE"));
        assert!(!is_same(r"C:\Windows\a", r"C:\Windows") && !is_same("/bin/A", "/bin/a") && !is_same("a", "a"));
    }

    #[test]
    fn where_windows_says_a_link_leads_is_read_as_a_path() {
        assert_eq!(without_verbatim(r"\\?\C:\a\b"), r"C:\a\b");
        for other in [r"\\?\UNC\server\share", r"\\?\Volume{1}\a", "/a", r"C:\a"] {
            assert_eq!(without_verbatim(other), other);
        }
    }
}
