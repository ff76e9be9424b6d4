//! How an error reaches the person: what failed, why, and what to do next.

use crate::{client::ApiError, text};
use std::{io, process::ExitCode};

/// A failure that knows its way out.
#[derive(Debug, thiserror::Error)]
#[error("{message}")]
pub struct Failure {
    message: String,
    advice: String,
    usage: bool,
}

/// A failure with the step that leads out of it.
pub fn advise(message: impl Into<String>, advice: impl Into<String>) -> anyhow::Error {
    Failure { message: message.into(), advice: advice.into(), usage: false }.into()
}

/// The command was called wrongly, in a way that only shows once it runs. Exit code 2, as for any bad usage.
pub fn usage(message: impl Into<String>, advice: impl Into<String>) -> anyhow::Error {
    Failure { message: message.into(), advice: advice.into(), usage: true }.into()
}

/// Tells the error on stderr and picks the exit code.
pub fn report(error: &anyhow::Error) -> ExitCode {
    if reader_left(error) {
        return ExitCode::SUCCESS;
    }
    let (text, advice, code) = explain(error);
    text::say(&format!("error: {text}"));
    if let Some(advice) = advice {
        text::say(&format!("hint: {advice}"));
    }
    ExitCode::from(code)
}

/// `moorline clusters | head -1` is no failure: whoever read us had enough.
fn reader_left(error: &anyhow::Error) -> bool {
    error.chain().any(|cause| {
        let broken = |e: &io::Error| e.kind() == io::ErrorKind::BrokenPipe;
        cause.downcast_ref::<StdoutError>().is_some_and(|e| broken(&e.0))
    })
}

/// Standard output could not be written.
#[derive(Debug, thiserror::Error)]
#[error("cannot write to standard output")]
pub struct StdoutError(#[source] pub io::Error);

fn explain(error: &anyhow::Error) -> (String, Option<String>, u8) {
    let mut parts: Vec<String> = Vec::new();
    let (mut advice, mut code) = (None, 1);
    for cause in error.chain() {
        let part = text::clean(&cause.to_string());
        // Some libraries repeat their source in their own text.
        if !parts.last().is_some_and(|last| last.contains(&part)) {
            parts.push(part);
        }
        if let Some(failure) = cause.downcast_ref::<Failure>() {
            advice.get_or_insert_with(|| failure.advice.clone());
            code = if failure.usage { 2 } else { code };
        } else if let Some(api) = cause.downcast_ref::<ApiError>() {
            advice = advice.or_else(|| api.advice());
        }
    }
    (parts.join(": "), advice.map(|a| text::clean(&a)), code)
}

#[cfg(test)]
mod tests {
    use super::*;
    use anyhow::Context;

    #[test]
    fn an_error_tells_cause_and_way_out() {
        let error = Err::<(), _>(advise("no such file", "make one")).context("cannot start").unwrap_err();
        assert_eq!(explain(&error), ("cannot start: no such file".into(), Some("make one".into()), 1));
        assert_eq!(explain(&usage("a", "b")).2, 2);
    }

    #[test]
    fn control_characters_of_others_never_reach_the_terminal() {
        let error = advise("cluster \u{1b}[31mred", "x");
        assert_eq!(explain(&error).0, "cluster \\u{1b}[31mred");
    }

    #[test]
    fn a_reader_that_left_is_told_from_a_broken_connection() {
        let broken = || io::Error::from(io::ErrorKind::BrokenPipe);
        assert!(reader_left(&StdoutError(broken()).into()));
        assert!(!reader_left(&broken().into()));
    }
}
