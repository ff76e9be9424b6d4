//! What the tunnel to a cluster can carry: measured between the hub and an agent, over streams that the agent echoes. No
//! API server, no user and no proxy is in it.

use crate::{link::Packets, sessions::Entry};
use moorline_link::{OpenError, Stream};
use moorline_proto::header::{Class, StreamHeader, Target};
use serde::{Deserialize, Serialize};
use std::{
    io,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    task::JoinSet,
    time::{Instant, timeout},
};

/// Longest phase, in seconds.
const SECONDS: u32 = 30;
/// Most streams at once.
const STREAMS: u32 = 64;
/// Round trips of one phase that are remembered.
const SAMPLES: usize = 100_000;
/// Bytes of a small message.
const SMALL: usize = 64;
/// Bytes written at once.
const CHUNK: usize = 64 << 10;
/// Longest wait for one small message to come back.
const LOST: Duration = Duration::from_secs(10);

/// What is asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub(crate) struct Plan {
    /// Length of each of the three phases.
    pub seconds: u32,
    /// Streams of the last phase.
    pub streams: u32,
}
impl Default for Plan {
    fn default() -> Self {
        Self { seconds: 3, streams: 8 }
    }
}
impl Plan {
    /// What is wrong with it.
    pub fn fault(&self) -> Option<String> {
        let bad = |name, most| Some(format!("{name} must be from 1 to {most}"));
        match self {
            Self { seconds, .. } if !(1..=SECONDS).contains(seconds) => bad("seconds", SECONDS),
            Self { streams, .. } if !(1..=STREAMS).contains(streams) => bad("streams", STREAMS),
            _ => None,
        }
    }
}

/// What was measured.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Report {
    /// The agent at the other end.
    pub agent: String,
    /// What carried it.
    pub carrier: String,
    /// The carrier's estimate of the round trip, in milliseconds.
    pub rtt_ms: f64,
    /// Packets to the agent during the measurement; absent over TCP.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub packets: Option<Packets>,
    /// One after the other: nothing, one stream, and many streams beside small messages.
    pub phases: Vec<Phase>,
}

/// One phase.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Phase {
    /// Streams that were kept full.
    pub streams: u32,
    /// Bits that came back on them, in millions a second: as many went each way.
    pub mbits_each_way: f64,
    /// Round trips of small messages meanwhile.
    pub small: RoundTrips,
}

/// Round trips, in milliseconds.
#[derive(Debug, Default, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct RoundTrips {
    /// How many.
    pub count: usize,
    pub p50_ms: f64,
    pub p99_ms: f64,
    pub max_ms: f64,
}

/// Why nothing was measured.
#[derive(Debug, thiserror::Error)]
pub(crate) enum BenchError {
    #[error("no stream to the agent: {0}")]
    Open(#[from] OpenError),
    #[error("the agent's echo broke off: {0}")]
    Broken(#[from] io::Error),
    #[error("the agent's echo did not come back in {LOST:?}")]
    Late,
}

/// Measures one session. Dropping the future resets its streams.
pub(crate) async fn run(entry: &Entry, plan: Plan) -> Result<Report, BenchError> {
    let before = entry.session.losses();
    let each = Duration::from_secs(plan.seconds.into());
    let mut phases = Vec::new();
    for streams in [0, 1, plan.streams] {
        phases.push(phase(entry, streams, each).await?);
    }
    Ok(Report {
        agent: entry.agent.clone(),
        carrier: entry.session.carrier().to_string(),
        rtt_ms: entry.session.rtt().as_secs_f64() * 1e3,
        packets: before.zip(entry.session.losses()).map(|(before, now)| Packets::since(now, before)),
        phases,
    })
}

async fn open(entry: &Entry, class: Class) -> Result<Stream, OpenError> {
    let header = StreamHeader { target: Target::Echo, class, deadline_ms: 0, traceparent: None, principal: None };
    entry.session.open(&header).await
}

async fn phase(entry: &Entry, streams: u32, length: Duration) -> Result<Phase, BenchError> {
    let back = Arc::new(AtomicU64::new(0));
    let mut full = JoinSet::new();
    for _ in 0..streams {
        full.spawn(fill(open(entry, Class::Bulk).await?, Arc::clone(&back)));
    }
    let small = open(entry, Class::Interactive).await?;
    let begin = Instant::now();
    let samples = tokio::select! {
        samples = round_trips(small, begin + length) => samples?,
        Some(ended) = full.join_next() => {
            let error = ended.unwrap_or_else(|failed| io::Error::other(failed.to_string()));
            return Err(BenchError::Broken(error));
        }
    };
    let bits = back.load(Ordering::Relaxed) as f64 * 8.0;
    Ok(Phase { streams, mbits_each_way: bits / begin.elapsed().as_secs_f64() / 1e6, small: RoundTrips::of(samples) })
}

/// Keeps a stream full both ways. Ends with the error that ends it.
async fn fill(stream: Stream, back: Arc<AtomicU64>) -> io::Error {
    let (mut read, mut write) = tokio::io::split(stream);
    let sending = async {
        let chunk = vec![0x5a; CHUNK];
        loop {
            if let Err(error) = write.write_all(&chunk).await {
                return error;
            }
        }
    };
    let receiving = async {
        let mut chunk = vec![0; CHUNK];
        loop {
            match read.read(&mut chunk).await {
                Ok(0) => return io::ErrorKind::UnexpectedEof.into(),
                Ok(n) => back.fetch_add(n as u64, Ordering::Relaxed),
                Err(error) => return error,
            };
        }
    };
    tokio::select! {
        error = sending => error,
        error = receiving => error,
    }
}

/// Sends small messages one after the other until `end`; how long each took to come back, the verdict aside.
async fn round_trips(mut stream: Stream, end: Instant) -> Result<Vec<Duration>, BenchError> {
    let (sent, mut back) = ([0xa5; SMALL], [0; SMALL]);
    let (mut samples, mut opened) = (Vec::new(), false);
    loop {
        let begin = Instant::now();
        let trip = async {
            stream.write_all(&sent).await?;
            stream.flush().await?;
            stream.read_exact(&mut back).await
        };
        // The last message is waited for: a path that stalls must not look as if it had answered fast until then.
        timeout(LOST, trip).await.map_err(|_| BenchError::Late)??;
        // The first brings the stream's opening with it.
        if std::mem::replace(&mut opened, true) && samples.len() < SAMPLES {
            samples.push(begin.elapsed());
        }
        if end <= Instant::now() {
            return Ok(samples);
        }
    }
}

impl RoundTrips {
    fn of(mut samples: Vec<Duration>) -> Self {
        samples.sort_unstable();
        let at = |share: f64| {
            let last = samples.len().saturating_sub(1);
            samples.get((share * last as f64).round() as usize).map_or(0.0, |took| took.as_secs_f64() * 1e3)
        };
        Self { count: samples.len(), p50_ms: at(0.5), p99_ms: at(0.99), max_ms: at(1.0) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_of_what_was_seen() {
        assert_eq!(RoundTrips::of(Vec::new()), RoundTrips::default());
        let seen = RoundTrips::of((1..=101).rev().map(Duration::from_millis).collect());
        assert_eq!((seen.count, seen.p50_ms, seen.p99_ms, seen.max_ms), (101, 51.0, 100.0, 101.0));
    }

    #[test]
    fn a_plan_stays_within_bounds() {
        assert_eq!(Plan::default().fault(), None);
        for plan in
            [Plan { seconds: 0, streams: 1 }, Plan { seconds: 31, streams: 1 }, Plan { seconds: 1, streams: 65 }]
        {
            assert!(plan.fault().is_some(), "{plan:?}");
        }
    }
}
