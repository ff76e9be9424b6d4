//! The driver over in-memory carriers and a paused clock.

mod interop;

use super::*;
use moorline_proto::code::ResetCode;
use std::io;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex},
    task::JoinSet,
};

const PIPE: usize = 64 * 1024;

fn pair_over(limits: &MuxLimits, pipe: usize) -> (MuxHandle, MuxHandle) {
    let (a, b) = duplex(pipe);
    (spawn_with(a, MuxRole::Client, limits.clone()), spawn_with(b, MuxRole::Server, limits.clone()))
}

fn pair() -> (MuxHandle, MuxHandle) {
    pair_over(&MuxLimits::default(), PIPE)
}

fn code_of(error: &io::Error) -> Option<ResetCode> {
    error.get_ref()?.downcast_ref::<StreamReset>().map(|reset| reset.0)
}

fn pattern(len: usize) -> Vec<u8> {
    (0..len).map(|n| (n * 31 + (n >> 9)) as u8).collect()
}

/// Answers every stream with its own bytes until the session is over.
async fn echo(handle: MuxHandle) {
    let mut streams = JoinSet::new();
    while let Some(stream) = handle.accept().await {
        streams.spawn(async move {
            let (mut reader, mut writer) = tokio::io::split(stream);
            let _ = tokio::io::copy(&mut reader, &mut writer).await;
            let _ = writer.shutdown().await;
        });
    }
}

async fn ask(handle: &MuxHandle, question: Vec<u8>) -> Vec<u8> {
    let (mut reader, mut writer) = tokio::io::split(handle.open(Class::Interactive).unwrap());
    let write = async move {
        writer.write_all(&question).await.unwrap();
        writer.shutdown().await.unwrap();
    };
    let mut answer = Vec::new();
    let (_, read) = tokio::join!(write, reader.read_to_end(&mut answer));
    read.unwrap();
    answer
}

#[tokio::test(start_paused = true)]
async fn nothing_waits_for_a_timer() {
    for pipe in [1, 7, 100, 5000, PIPE, 1 << 20] {
        let (client, server) = pair_over(&MuxLimits::default(), pipe);
        let mut tasks = JoinSet::new();
        tasks.spawn(echo(server.clone()));
        let start = tokio::time::Instant::now();
        let mut asks = JoinSet::new();
        for n in 0..10 {
            let client = client.clone();
            asks.spawn(async move {
                let question = pattern(n * n * pipe.min(20_000));
                assert!(ask(&client, question.clone()).await == question);
            });
        }
        while let Some(done) = asks.join_next().await {
            done.unwrap();
        }
        assert_eq!(start.elapsed(), Duration::ZERO, "pipe of {pipe}");
    }
}

#[tokio::test]
async fn many_streams_at_once_arrive_whole() {
    let (client, server) = pair();
    let mut tasks = JoinSet::new();
    tasks.spawn(echo(server.clone()));
    tasks.spawn(echo(client.clone()));
    let mut asks = JoinSet::new();
    for n in 0..100 {
        let handle = if n % 2 == 0 { client.clone() } else { server.clone() };
        asks.spawn(async move {
            let question = pattern(n * 3000);
            assert_eq!(ask(&handle, question.clone()).await, question);
        });
    }
    while let Some(done) = asks.join_next().await {
        done.unwrap();
    }
    assert_eq!((client.stats().open_streams, client.stats().buffered), (0, 0));
    client.close(CloseCode::Normal, "done");
    assert_eq!(client.closed().await, CloseReason { code: CloseCode::Normal, by_peer: false, message: "done".into() });
    let there = server.closed().await;
    assert_eq!((there.code, there.by_peer), (CloseCode::Normal, true));
    tasks.join_all().await;
}

#[tokio::test]
async fn a_reset_is_no_end_of_input() {
    let (client, server) = pair();
    let mut ours = client.open(Class::Interactive).unwrap();
    ours.write_all(b"half a mess").await.unwrap();
    let mut theirs = server.accept().await.unwrap();
    let mut buf = [0; 11];
    theirs.read_exact(&mut buf).await.unwrap();
    ours.reset(ResetCode::Revoked);
    assert_eq!(theirs.stopped().await, StreamReset(ResetCode::Revoked));
    let error = theirs.read(&mut buf).await.unwrap_err();
    assert_eq!((error.kind(), code_of(&error)), (io::ErrorKind::ConnectionReset, Some(ResetCode::Revoked)));
    assert_eq!(code_of(&theirs.write(b"x").await.unwrap_err()), Some(ResetCode::Revoked));
}

#[tokio::test]
async fn dropping_a_stream_says_what_it_was() {
    let (client, server) = pair();
    // With its writer open: cancelled.
    let mut ours = client.open(Class::Interactive).unwrap();
    ours.write_all(b"x").await.unwrap();
    let mut theirs = server.accept().await.unwrap();
    assert_eq!(theirs.read_u8().await.unwrap(), b'x');
    drop(ours);
    assert_eq!(code_of(&theirs.read_u8().await.unwrap_err()), Some(ResetCode::Cancelled));
    // After both ends: clean, and the bytes arrive after the drop.
    let mut ours = client.open(Class::Interactive).unwrap();
    ours.write_all(b"question").await.unwrap();
    let mut theirs = server.accept().await.unwrap();
    theirs.shutdown().await.unwrap();
    assert_eq!(ours.read(&mut [0; 1]).await.unwrap(), 0);
    ours.write_all(&pattern(100_000)).await.unwrap();
    ours.shutdown().await.unwrap();
    assert_eq!(ours.write(b"x").await.unwrap_err().kind(), io::ErrorKind::BrokenPipe);
    drop(ours);
    let mut all = Vec::new();
    theirs.read_to_end(&mut all).await.unwrap();
    assert_eq!(all.len(), 100_008);
}

#[tokio::test]
async fn a_lost_carrier_is_a_lost_session() {
    let (near, far) = duplex(PIPE);
    let client = spawn_with(near, MuxRole::Client, MuxLimits::default());
    let mut stream = client.open(Class::Interactive).unwrap();
    stream.write_all(b"x").await.unwrap();
    drop(far);
    assert_eq!(code_of(&stream.read_u8().await.unwrap_err()), Some(ResetCode::SessionLost));
    assert_eq!(code_of(&stream.write_all(b"x").await.unwrap_err()), Some(ResetCode::SessionLost));
    let reason = client.closed().await;
    assert_eq!((reason.code, reason.by_peer), (CloseCode::Silent, false));
    assert!(matches!(client.open(Class::Interactive), Err(OpenError::Closed(_))));
    assert!(client.accept().await.is_none());
    assert!(client.ping().await.is_err());
}

#[tokio::test]
async fn dropping_the_last_handle_ends_the_session() {
    let (client, server) = pair();
    let mut ours = client.open(Class::Interactive).unwrap();
    ours.write_all(b"last words").await.unwrap();
    drop(client.clone());
    let mut theirs = server.accept().await.unwrap();
    drop(client);
    let mut buf = [0; 10];
    theirs.read_exact(&mut buf).await.unwrap();
    assert_eq!(&buf, b"last words");
    assert_eq!(code_of(&theirs.read_u8().await.unwrap_err()), Some(ResetCode::SessionLost));
    assert_eq!(code_of(&ours.read_u8().await.unwrap_err()), Some(ResetCode::SessionLost));
    assert!(server.closed().await.by_peer);
}

#[tokio::test]
async fn a_drain_ends_with_the_last_stream() {
    let (client, server) = pair();
    let mut ours = client.open(Class::Interactive).unwrap();
    ours.write_all(b"x").await.unwrap();
    let mut theirs = server.accept().await.unwrap();
    server.go_away(CloseCode::Shutdown, "going down");
    client.peer_draining().await;
    assert!(client.peer_is_draining() && server.is_draining());
    assert!(matches!(client.open(Class::Interactive), Err(OpenError::Draining)));
    assert!(matches!(server.open(Class::Interactive), Err(OpenError::Draining)));
    ours.write_all(b"yz").await.unwrap();
    ours.shutdown().await.unwrap();
    let mut all = Vec::new();
    theirs.read_to_end(&mut all).await.unwrap();
    assert_eq!(all, b"xyz");
    theirs.shutdown().await.unwrap();
    drop(theirs);
    let reason = server.closed().await;
    assert_eq!(reason, CloseReason { code: CloseCode::Shutdown, by_peer: false, message: "going down".into() });
    assert_eq!(ours.read(&mut [0; 1]).await.unwrap(), 0);
    assert_eq!(client.closed().await.code, CloseCode::Shutdown);
}

#[tokio::test]
async fn one_stalled_reader_costs_its_window_and_nothing_else() {
    let (client, server) = pair();
    let mut stalled = client.open(Class::Bulk).unwrap();
    stalled.write_all(&pattern(256 << 10)).await.unwrap();
    let _held = server.accept().await.unwrap();
    let more = tokio::time::timeout(Duration::from_millis(50), stalled.write_all(b"x")).await;
    assert!(more.is_err(), "no credit, no room");
    let mut tasks = JoinSet::new();
    tasks.spawn(echo(server.clone()));
    let question = pattern(3 << 20);
    assert_eq!(ask(&client, question.clone()).await, question);
    assert_eq!(server.stats().buffered, 256 << 10);
}

#[tokio::test]
async fn reading_goes_on_while_writing_is_stuck() {
    let (near, mut far) = duplex(1024);
    let client = spawn_with(near, MuxRole::Client, MuxLimits::default());
    let mut ours = client.open(Class::Interactive).unwrap();
    ours.write_all(&pattern(100_000)).await.unwrap();
    // The far end reads nothing, and still gets its stream heard, over and over.
    for id in (2u32..40).step_by(2) {
        let mut frame = vec![0, 0, 0, 5];
        frame.extend(id.to_be_bytes());
        frame.extend(500u32.to_be_bytes());
        frame.extend([7; 500]);
        far.write_all(&frame).await.unwrap();
        let mut theirs = client.accept().await.unwrap();
        let mut all = Vec::new();
        theirs.read_to_end(&mut all).await.unwrap();
        assert_eq!(all, [7; 500]);
    }
}

#[tokio::test(start_paused = true)]
async fn silence_closes_and_answers_keep_open() {
    let (client, server) = pair();
    tokio::time::sleep(Duration::from_secs(300)).await;
    assert_eq!(client.stats().open_streams, 0);
    assert!(client.ping().await.is_ok() && server.ping().await.is_ok());

    let (near, _far) = duplex(PIPE);
    let lonely = spawn_with(near, MuxRole::Client, MuxLimits::default());
    let start = tokio::time::Instant::now();
    assert_eq!(lonely.closed().await.code, CloseCode::Silent);
    assert_eq!(start.elapsed().as_secs(), 20);
}

#[tokio::test(start_paused = true)]
async fn a_close_that_nobody_reads_is_bounded() {
    let (near, far) = duplex(16);
    let client = spawn_with(near, MuxRole::Client, MuxLimits::default());
    let mut ours = client.open(Class::Interactive).unwrap();
    ours.write_all(&pattern(50_000)).await.unwrap();
    client.close(CloseCode::Normal, "enough");
    assert_eq!(client.closed().await.message, "enough");
    let start = tokio::time::Instant::now();
    // The carrier is let go of, though nobody took what was to be said.
    let mut far = far;
    tokio::time::sleep(CLOSING + Duration::from_millis(10)).await;
    let mut rest = Vec::new();
    far.read_to_end(&mut rest).await.unwrap();
    assert!(rest.len() <= 16 && start.elapsed() < CLOSING * 2);
}

#[tokio::test]
async fn a_breach_ends_with_its_code() {
    let (near, mut far) = duplex(PIPE);
    let server = spawn_with(near, MuxRole::Server, MuxLimits::default());
    far.write_all(&[9; 12]).await.unwrap();
    let reason = server.closed().await;
    assert_eq!(reason.code, CloseCode::Version);
    assert_eq!(reason.message, "frame of unknown version 9");
    let mut said = Vec::new();
    far.read_to_end(&mut said).await.unwrap();
    assert!(said.ends_with(&[0, 3, 0, 0, 0, 0, 0, 0, 0, 0, 0, 7]), "{said:?}");
}

#[tokio::test]
async fn a_runtime_that_goes_down_leaves_nobody_waiting() {
    let (near, _far): (DuplexStream, DuplexStream) = duplex(PIPE);
    let other = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let handle = other.spawn(async move { spawn_with(near, MuxRole::Client, MuxLimits::default()) }).await.unwrap();
    other.shutdown_background();
    assert_eq!(handle.closed().await.code, CloseCode::Silent);
}

#[tokio::test]
async fn small_writes_share_frames_and_idle_streams_hold_nothing() {
    let (client, server) = pair();
    let mut ours = client.open(Class::Interactive).unwrap();
    let before = client.stats().bytes_out;
    for byte in pattern(1000) {
        ours.write_all(&[byte]).await.unwrap();
    }
    ours.shutdown().await.unwrap();
    let mut theirs = server.accept().await.unwrap();
    let mut all = Vec::new();
    theirs.read_to_end(&mut all).await.unwrap();
    assert_eq!(all, pattern(1000));
    let spent = client.stats().bytes_out - before;
    assert!(spent < 1300, "{spent} bytes for 1000");
}

#[tokio::test]
async fn vectored_and_uncopied_writes_arrive_in_order() {
    let (client, server) = pair();
    let mut ours = client.open(Class::Interactive).unwrap();
    let all = pattern(10_000);
    let (head, rest) = all.split_at(17);
    let (middle, tail) = rest.split_at(5000);
    let slices = [io::IoSlice::new(head), io::IoSlice::new(&[]), io::IoSlice::new(middle)];
    assert_eq!(ours.write_vectored(&slices).await.unwrap(), 5017);
    let mut bytes = bytes::Bytes::copy_from_slice(tail);
    let n = std::future::poll_fn(|cx| ours.poll_write_bytes(cx, &mut bytes)).await.unwrap();
    assert_eq!((n, bytes.len()), (tail.len(), 0));
    ours.shutdown().await.unwrap();
    let mut read = Vec::new();
    server.accept().await.unwrap().read_to_end(&mut read).await.unwrap();
    assert_eq!(read, all);
}

#[tokio::test(start_paused = true)]
async fn a_full_session_reads_on_once_there_is_room() {
    let limits =
        MuxLimits { session_buffer_budget: 100_000, ping_every: Duration::from_secs(3600), ..MuxLimits::default() };
    let (client, server) = pair_over(&MuxLimits { silence: Duration::MAX / 2, ..limits.clone() }, 4096);
    let question = pattern(10 << 20);
    let mut ours = client.open(Class::Bulk).unwrap();
    let mut tasks = JoinSet::new();
    let sent = question.clone();
    tasks.spawn(async move {
        ours.write_all(&sent).await.unwrap();
        ours.shutdown().await.unwrap();
        let _ = ours.stopped().await;
    });
    let start = tokio::time::Instant::now();
    let mut theirs = server.accept().await.unwrap();
    let mut answer = Vec::new();
    let mut chunk = vec![0; 1000];
    while let n @ 1.. = theirs.read(&mut chunk).await.unwrap() {
        assert!(server.stats().buffered < 200_000);
        answer.extend_from_slice(&chunk[..n]);
    }
    assert!(answer == question);
    // The clock only moves when everyone waits: nobody waited for a timer.
    assert_eq!(start.elapsed(), Duration::ZERO);
}
