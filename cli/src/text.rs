//! Small text: standard streams, ages, durations, sizes of nothing else.

use crate::failure::StdoutError;
use jiff::Timestamp;
use std::{
    io::{IsTerminal, Write},
    time::Duration,
};

/// Data, to standard output. Colour codes are taken out unless a terminal reads them (`NO_COLOR`, `CLICOLOR`).
pub fn print(data: &str) -> Result<(), StdoutError> {
    let mut out = anstream::stdout().lock();
    out.write_all(data.as_bytes()).and_then(|()| out.flush()).map_err(StdoutError)
}

/// Words for a person, to standard error. Nobody to read them is no failure.
pub fn say(words: &str) {
    let _ = writeln!(anstream::stderr().lock(), "{words}");
}

/// Somebody sits there who can answer a question.
pub fn can_ask() -> bool {
    std::io::stdin().is_terminal() && std::io::stderr().is_terminal()
}

/// Asks for one line on the terminal. `None`: the input ended.
pub fn ask(question: &str) -> std::io::Result<Option<String>> {
    let mut err = std::io::stderr().lock();
    write!(err, "{question}")?;
    err.flush()?;
    let mut line = String::new();
    let read = std::io::stdin().read_line(&mut line)?;
    Ok((read != 0).then(|| line.trim().to_owned()))
}

/// Longest secret taken from standard input, in bytes. No password or token comes near.
const MAX_SECRET: u64 = 64 * 1024;

/// The first line of standard input, without its line end: how scripts hand over a secret.
pub fn secret_from_stdin() -> anyhow::Result<String> {
    use std::io::{BufRead, Read};
    let mut line = String::new();
    std::io::stdin().lock().take(MAX_SECRET).read_line(&mut line)?;
    let secret = line.trim_end_matches(['\r', '\n']).to_owned();
    if secret.is_empty() {
        return Err(crate::failure::usage("standard input held no secret", "write it as one line to standard input"));
    }
    Ok(secret)
}

/// Text of others, safe on a terminal: control characters are shown, not obeyed.
pub fn clean(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        if c.is_control() { out.extend(c.escape_default()) } else { out.push(c) }
    }
    out
}

/// How long ago `then` was, as kubectl's AGE column says it.
pub fn age(then: Timestamp, now: Timestamp) -> String {
    short(now.as_second() - then.as_second())
}

/// Seconds in kubectl's short form (`duration.HumanDuration` of apimachinery): two units while the number is small.
pub fn short(seconds: i64) -> String {
    let (minutes, hours) = (seconds / 60, seconds / 3600);
    let two = |big: i64, b: char, small: i64, s: char| {
        if small == 0 { format!("{big}{b}") } else { format!("{big}{b}{small}{s}") }
    };
    match () {
        () if seconds < -1 => "<invalid>".into(),
        () if seconds < 0 => "0s".into(),
        () if seconds < 120 => format!("{seconds}s"),
        () if minutes < 10 => two(minutes, 'm', seconds % 60, 's'),
        () if minutes < 180 => format!("{minutes}m"),
        () if hours < 8 => two(hours, 'h', minutes % 60, 'm'),
        () if hours < 48 => format!("{hours}h"),
        () if hours < 24 * 8 => two(hours / 24, 'd', hours % 24, 'h'),
        () if hours < 24 * 365 * 2 => format!("{}d", hours / 24),
        () if hours < 24 * 365 * 8 => two(hours / 24 / 365, 'y', hours / 24 % 365, 'd'),
        () => format!("{}y", hours / 24 / 365),
    }
}

/// Reads `90s`, `15m`, `1h30m`, `7d`, `2w`: a time span above zero. A day has 24 hours.
pub fn duration(text: &str) -> Result<Duration, String> {
    const RULE: &str = "a time span such as 90s, 15m, 1h30m or 7d";
    let span: jiff::Span = text.parse().map_err(|_| RULE.to_owned())?;
    let length = span.to_duration(jiff::SpanRelativeTo::days_are_24_hours()).map_err(|_| RULE.to_owned())?;
    let length = Duration::try_from(length).map_err(|_| RULE.to_owned())?;
    if length.is_zero() { Err(RULE.to_owned()) } else { Ok(length) }
}

/// The moment `ttl` from now, to the second, as the API writes it.
pub fn expires(ttl: Duration) -> anyhow::Result<String> {
    let whole = Timestamp::from_second(Timestamp::now().as_second())?;
    let at = whole.checked_add(ttl).map_err(|_| {
        crate::failure::usage("that time span reaches past the end of the calendar", "give a shorter one")
    })?;
    Ok(at.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ages_read_as_kubectl_writes_them() {
        const H: i64 = 3600;
        const D: i64 = 24 * H;
        for (seconds, want) in [
            (-5, "<invalid>"),
            (-1, "0s"),
            (0, "0s"),
            (119, "119s"),
            (120, "2m"),
            (125, "2m5s"),
            (599, "9m59s"),
            (600, "10m"),
            (179 * 60 + 59, "179m"),
            (3 * H, "3h"),
            (3 * H + 60, "3h1m"),
            (8 * H, "8h"),
            (47 * H + 59, "47h"),
            (2 * D, "2d"),
            (5 * D + 3 * H, "5d3h"),
            (8 * D, "8d"),
            (729 * D, "729d"),
            (730 * D, "2y"),
            (735 * D, "2y5d"),
            (8 * 365 * D + D, "8y"),
        ] {
            assert_eq!(short(seconds), want, "{seconds} s");
        }
    }

    #[test]
    fn time_spans_have_units_and_are_above_zero() {
        assert_eq!(duration("1h30m"), Ok(Duration::from_secs(5400)));
        assert_eq!(duration("7d"), Ok(Duration::from_secs(7 * 86400)));
        for bad in ["", "0s", "-1h", "1 month", "10", "soon"] {
            assert!(duration(bad).is_err(), "{bad:?}");
        }
    }
}
