//! Sessions on simulated time, over paths whose weather a seed decides: delays, pauses, trickles, cuts. Whatever comes, bytes
//! arrive as they were, nobody waits for ever, nothing is held beyond its bound, and an end is no clean end unless it is one.

use super::*;
use crate::testing::session_pair_over;
use std::{
    collections::VecDeque,
    io,
    sync::{Arc, Mutex},
    task::{Context, Waker},
};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    task::JoinSet,
    time::{Instant, Sleep, sleep, sleep_until, timeout},
};

/// Seeds that every run tries; more with `MOORLINE_SEEDS`. One alone with `MOORLINE_SEED`.
const SEEDS: u64 = 200;
/// Bytes that lie on one way of the path, at most: what sockets hold.
const ROOM: usize = 256 << 10;
/// No exchange takes longer, or it hangs.
const HANGS: Duration = Duration::from_secs(300);
/// Most bytes of one exchange.
const MOST: u64 = 1 << 20;

/// Random numbers that are the same for the same seed (SplitMix64).
#[derive(Debug, Clone)]
struct Dice(u64);
impl Dice {
    fn roll(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }
    fn below(&mut self, bound: u64) -> u64 {
        self.roll() % bound
    }
    fn one<T: Copy>(&mut self, of: &[T]) -> T {
        of[usize::try_from(self.below(of.len() as u64)).unwrap()]
    }
    /// Dice of their own for somebody else: what they roll changes nothing here.
    fn split(&mut self) -> Self {
        Self(self.roll())
    }
}

/// One way of the path: pieces in order, each with the moment from which on it can be read.
struct Way {
    pieces: VecDeque<(Instant, Vec<u8>)>,
    held: usize,
    newest: Instant,
    ended: bool,
    reader: Option<Waker>,
    writer: Option<Waker>,
}

/// Both ways, and what they go through.
struct Path {
    ways: [Way; 2],
    dice: Dice,
    delay: Duration,
    /// Nothing sent before comes before.
    paused: Instant,
    /// Both ends see an error from now on.
    cut: bool,
}

impl Path {
    fn pair(mut dice: Dice) -> (Arc<Mutex<Self>>, (End, End)) {
        let now = Instant::now();
        let way = || Way { pieces: VecDeque::new(), held: 0, newest: now, ended: false, reader: None, writer: None };
        let delay = Duration::from_millis(dice.one(&[0, 1, 20, 150, 600]));
        let path = Self { ways: [way(), way()], dice, delay, paused: now, cut: false };
        let path = Arc::new(Mutex::new(path));
        let end = |side| End { path: Arc::clone(&path), side, timer: None };
        let ends = (end(0), end(1));
        (path, ends)
    }

    fn wake(&mut self) {
        for way in &mut self.ways {
            way.reader.take().into_iter().chain(way.writer.take()).for_each(Waker::wake);
        }
    }

    /// Nothing arrives for so long; what is sent meanwhile arrives afterwards, as TCP has it.
    fn pause(&mut self, time: Duration) {
        self.paused = Instant::now() + time;
        let paused = self.paused;
        for way in &mut self.ways {
            way.pieces.iter_mut().for_each(|(at, _)| *at = (*at).max(paused));
            way.newest = way.newest.max(paused);
        }
        self.wake();
    }

    fn cut(&mut self) {
        self.cut = true;
        self.wake();
    }
}

/// One end of a path.
struct End {
    path: Arc<Mutex<Path>>,
    side: usize,
    timer: Option<Pin<Box<Sleep>>>,
}

impl AsyncRead for End {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let path = Arc::clone(&self.path);
        let mut path = path.lock().unwrap();
        if path.cut {
            return Poll::Ready(Err(io::ErrorKind::ConnectionReset.into()));
        }
        let piece = path.dice.below(3);
        let way = &mut path.ways[1 - self.side];
        let now = Instant::now();
        match way.pieces.front_mut() {
            Some((at, bytes)) if *at <= now => {
                // Often not all of it at once.
                let most = buf.remaining().min(bytes.len());
                let n = if piece == 0 { most.div_ceil(3) } else { most };
                buf.put_slice(&bytes[..n]);
                bytes.drain(..n);
                if bytes.is_empty() {
                    way.pieces.pop_front();
                }
                way.held -= n;
                way.writer.take().into_iter().for_each(Waker::wake);
                Poll::Ready(Ok(()))
            }
            Some((at, _)) => {
                let at = *at;
                way.reader = Some(cx.waker().clone());
                let mut timer = Box::pin(sleep_until(at));
                let fires = timer.as_mut().poll(cx);
                self.timer = Some(timer);
                if fires.is_ready() {
                    cx.waker().wake_by_ref();
                }
                Poll::Pending
            }
            None if way.ended => Poll::Ready(Ok(())),
            None => {
                way.reader = Some(cx.waker().clone());
                Poll::Pending
            }
        }
    }
}

impl AsyncWrite for End {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let mut path = self.path.lock().unwrap();
        if path.cut {
            return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into()));
        }
        let (jitter, part) = (path.dice.below(3), path.dice.below(4));
        let (delay, paused) = (path.delay, path.paused);
        let way = &mut path.ways[self.side];
        let room = ROOM - way.held;
        if room == 0 {
            way.writer = Some(cx.waker().clone());
            return Poll::Pending;
        }
        let most = bytes.len().min(room);
        let n = if part == 0 { most.div_ceil(2) } else { most };
        let at = (Instant::now() + delay * u32::try_from(1 + jitter).unwrap() / 2).max(paused).max(way.newest);
        way.newest = at;
        way.held += n;
        way.pieces.push_back((at, bytes[..n].to_vec()));
        way.reader.take().into_iter().for_each(Waker::wake);
        Poll::Ready(Ok(n))
    }
    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        let mut path = self.path.lock().unwrap();
        path.ways[self.side].ended = true;
        path.wake();
        Poll::Ready(Ok(()))
    }
}

impl Drop for End {
    fn drop(&mut self) {
        let mut path = self.path.lock().unwrap();
        path.ways[self.side].ended = true;
        path.wake();
    }
}

/// What the agent does with a stream: its first byte.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
enum Kind {
    /// Gives back what comes.
    Echo,
    /// Reads all, then says how much it was.
    Sink,
    /// Resets in the middle.
    Reset,
    /// Neither reads nor writes, until the other side gives up.
    Stall,
}
const KINDS: [Kind; 4] = [Kind::Echo, Kind::Sink, Kind::Reset, Kind::Stall];

async fn serve(mut stream: Stream) {
    let mut kind = [0];
    if stream.read_exact(&mut kind).await.is_err() {
        return;
    }
    let mut buffer = vec![0; 8 << 10];
    let mut seen = 0_u64;
    match KINDS[usize::from(kind[0]) % KINDS.len()] {
        Kind::Echo => {
            while let Ok(n @ 1..) = stream.read(&mut buffer).await {
                if stream.write_all(&buffer[..n]).await.is_err() {
                    return;
                }
            }
            let _ = stream.shutdown().await;
        }
        Kind::Sink => {
            while let Ok(n) = stream.read(&mut buffer).await {
                seen += n as u64;
                if n == 0 {
                    let _ = stream.write_all(&seen.to_be_bytes()).await;
                    let _ = stream.shutdown().await;
                    return;
                }
            }
        }
        Kind::Reset => {
            let _ = stream.read(&mut buffer).await;
            let _ = stream.write_all(&buffer).await;
            stream.reset(ResetCode::Broken);
        }
        Kind::Stall => {
            poll_fn(|cx| stream.poll_cut(cx)).await;
        }
    }
}

/// What became of one exchange.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Came {
    /// As it should.
    Whole,
    /// To an error, seen as one.
    Broken,
}

/// One stream from the hub: what it brings is checked byte by byte.
async fn exchange(hub: Session, kind: Kind, mut dice: Dice) -> Came {
    let Ok(mut stream) = hub.open(&echo()).await else { return Came::Broken };
    // Now and then more than a window.
    let most = dice.one(&[MOST, MOST / 8, MOST / 8, MOST / 8]);
    let (length, at) = (dice.below(most), dice.below(251));
    let byte = move |n: u64| u8::try_from((n * 7 + at) % 251).unwrap();
    if stream.write_all(&[kind as u8]).await.is_err() {
        return Came::Broken;
    }
    if kind == Kind::Stall {
        // Gives up in a while, with as much written as goes.
        let _ = timeout(Duration::from_secs(20), stream.write_all(&vec![1; 4 << 20])).await;
        return Came::Whole;
    }
    let (mut read, mut write) = tokio::io::split(stream);
    let write = async {
        let mut sent = 0;
        while sent < length {
            let n = (1 + dice.below(40 << 10)).min(length - sent);
            let bytes: Vec<u8> = (sent..sent + n).map(byte).collect();
            write.write_all(&bytes).await?;
            sent += n;
            if dice.below(8) == 0 {
                sleep(Duration::from_millis(dice.below(400))).await;
            }
        }
        write.shutdown().await
    };
    let read = async {
        let mut all = Vec::new();
        read.read_to_end(&mut all).await.map(|_| all)
    };
    match tokio::join!(write, read) {
        (Ok(()), Ok(all)) if kind == Kind::Echo => {
            assert_eq!(all.len() as u64, length, "a clean end of something else");
            assert!(all.iter().zip(0..).all(|(seen, n)| *seen == byte(n)), "other bytes");
            Came::Whole
        }
        (Ok(()), Ok(all)) if kind == Kind::Sink => {
            assert_eq!(all, length.to_be_bytes(), "not all of it arrived");
            Came::Whole
        }
        (_, Ok(all)) => panic!("{kind:?}: a clean end after {} bytes", all.len()),
        (_, Err(_)) => Came::Broken,
    }
}

/// What comes upon a session.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Weather {
    /// Pauses that a session lives through.
    Fair,
    /// Silence for longer than that.
    Silent,
    /// An error at both ends.
    Cut,
}

/// A whole scene of one seed.
async fn scene(seed: u64) -> (Weather, Vec<Came>) {
    let mut dice = Dice(seed);
    let weather = dice.one(&[Weather::Fair, Weather::Fair, Weather::Silent, Weather::Cut]);
    let limits = Limits {
        stream_window: dice.one(&[256 << 10, 1 << 20]),
        session_window: dice.one(&[2 << 20, 32 << 20]),
        // None of those here is reset for others' sake: that has a test of its own.
        stall_grace: Duration::from_secs(600),
        ..Limits::default()
    };
    let (path, ends) = Path::pair(dice.split());
    let (hub, agent) = session_pair_over(ends, &limits);
    let serving = tokio::spawn({
        let agent = agent.clone();
        async move {
            while let Some(incoming) = agent.accept().await {
                tokio::spawn(serve(incoming.accept()));
            }
        }
    });
    let mut all = JoinSet::new();
    for _ in 0..1 + dice.below(8) {
        let (hub, kind, rolls) = (hub.clone(), dice.one(&KINDS), dice.split());
        let wait = Duration::from_millis(dice.below(3000));
        all.spawn(async move {
            sleep(wait).await;
            (kind, exchange(hub, kind, rolls).await)
        });
    }
    let mut sky = dice.split();
    let storm = async {
        for _ in 0..sky.below(4) {
            sleep(Duration::from_millis(sky.below(4000))).await;
            let pause = Duration::from_millis(sky.below(9000));
            path.lock().unwrap().pause(pause);
            // Between two of them a question comes and its answer goes: together they would be a silence.
            sleep(pause + limits.keep_alive + Duration::from_secs(2)).await;
        }
        if weather == Weather::Fair {
            return std::future::pending().await;
        }
        sleep(Duration::from_millis(sky.below(6000))).await;
        let (begun, noticed) = (Instant::now(), limits.noticed());
        match weather {
            Weather::Cut => path.lock().unwrap().cut(),
            _ => path.lock().unwrap().pause(Duration::from_secs(3600)),
        }
        tokio::join!(hub.closed(), agent.closed());
        assert!(begun.elapsed() <= noticed + Duration::from_secs(1), "noticed after {:?}", begun.elapsed());
        std::future::pending().await
    };
    let watch = async {
        loop {
            for session in [&hub, &agent] {
                let (held, bound) = (session.buffered().unwrap_or(0), limits.session_window + limits.send_window);
                assert!(held <= usize::try_from(bound).unwrap(), "{held} bytes are held");
            }
            sleep(Duration::from_millis(50)).await;
        }
    };
    let exchanges = async {
        let mut came = Vec::new();
        while let Some(done) = all.join_next().await {
            let (kind, one) = done.unwrap();
            // With nothing worse than pauses only those break that are meant to.
            assert!(weather != Weather::Fair || (one == Came::Broken) == (kind == Kind::Reset), "{kind:?}: {one:?}");
            came.push(one);
        }
        came
    };
    let came = timeout(HANGS, async {
        tokio::select! {
            came = exchanges => came,
            () = storm => unreachable!("it never ends"),
            () = watch => unreachable!("it never ends"),
        }
    });
    let came = came.await.expect("somebody waits for ever");
    if weather == Weather::Fair {
        assert!(hub.ping().await.is_ok() && hub.open_streams() == 0, "{} streams are left", hub.open_streams());
    }
    serving.abort();
    (weather, came)
}

/// Time is simulated; what tokio and the streams' own tables roll is not the seed's, so a scene may differ in its order when
/// it is replayed, and not in its weather.
#[test]
fn d1_sessions_keep_their_promises_whatever_the_weather() {
    let number = |name: &str| std::env::var(name).ok().and_then(|text| text.parse::<u64>().ok());
    let seeds = match number("MOORLINE_SEED") {
        Some(seed) => seed..seed + 1,
        None => 0..number("MOORLINE_SEEDS").unwrap_or(SEEDS),
    };
    let (mut whole, mut broken, mut seen) = (0, 0, [0; 3]);
    for seed in seeds.clone() {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().start_paused(true).build().unwrap();
        let run = std::panic::AssertUnwindSafe(|| runtime.block_on(scene(seed)));
        let (weather, came) = std::panic::catch_unwind(run).unwrap_or_else(|_| panic!("MOORLINE_SEED={seed}"));
        seen[weather as usize] += 1;
        whole += came.iter().filter(|one| **one == Came::Whole).count();
        broken += came.iter().filter(|one| **one == Came::Broken).count();
    }
    println!(
        "{} seeds ({seen:?} fair, silent, cut): {whole} exchanges whole, {broken} broken",
        seeds.end - seeds.start
    );
    assert!(seeds.end - seeds.start == 1 || (0 < whole && 0 < broken && seen.iter().all(|n| 0 < *n)));
}
