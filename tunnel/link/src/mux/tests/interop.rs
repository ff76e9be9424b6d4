//! The yamux crate as the other end: what its users may send us, and what it makes of what we send.

use super::*;
use std::future::poll_fn;
use tokio_util::compat::{Compat, FuturesAsyncReadCompatExt, TokioAsyncReadCompatExt};
use yamux::{Connection, Mode};

type Theirs = Compat<yamux::Stream>;

/// A yamux connection in a task of its own. Streams that it accepts echo; it opens `opens` streams and hands them out.
async fn yamux_peer(io: DuplexStream, mode: Mode, opens: usize) -> (JoinSet<()>, Vec<Theirs>) {
    let mut connection = Connection::new(io.compat(), yamux::Config::default(), mode);
    let mut opened = Vec::new();
    for _ in 0..opens {
        opened.push(poll_fn(|cx| connection.poll_new_outbound(cx)).await.unwrap().compat());
    }
    let mut tasks = JoinSet::new();
    tasks.spawn(async move {
        let mut echoes = JoinSet::new();
        while let Some(Ok(stream)) = poll_fn(|cx| connection.poll_next_inbound(cx)).await {
            echoes.spawn(async move {
                let (mut reader, mut writer) = tokio::io::split(stream.compat());
                let _ = tokio::io::copy(&mut reader, &mut writer).await;
                let _ = writer.shutdown().await;
            });
        }
    });
    (tasks, opened)
}

fn modes() -> [(MuxRole, Mode); 2] {
    [(MuxRole::Client, Mode::Server), (MuxRole::Server, Mode::Client)]
}

#[tokio::test]
async fn our_streams_through_yamux() {
    for (role, mode) in modes() {
        let (near, far) = duplex(PIPE);
        let ours = spawn_with(near, role, MuxLimits::default());
        let (_tasks, _) = yamux_peer(far, mode, 0).await;
        // Ten megabytes each way, with the end of one direction before that of the other.
        let question = pattern(10 << 20);
        assert!(ask(&ours, question.clone()).await == question);
        let mut asks = JoinSet::new();
        for n in 0..200 {
            let ours = ours.clone();
            asks.spawn(async move {
                let question = pattern(n * 100);
                assert_eq!(ask(&ours, question.clone()).await, question);
            });
        }
        while let Some(done) = asks.join_next().await {
            done.unwrap();
        }
        assert_eq!(ours.stats().open_streams, 0);
        assert!(ours.ping().await.is_ok());
    }
}

#[tokio::test]
async fn yamux_streams_through_us() {
    for (role, mode) in modes() {
        let (near, far) = duplex(PIPE);
        let ours = spawn_with(near, role, MuxLimits::default());
        let mut tasks = JoinSet::new();
        tasks.spawn(echo(ours.clone()));
        let (_connection, opened) = yamux_peer(far, mode, 200).await;
        let mut asks = JoinSet::new();
        // Not in the order in which they were opened.
        for (n, stream) in opened.into_iter().enumerate().rev() {
            asks.spawn(async move {
                let question = pattern(if n == 100 { 10 << 20 } else { n * 100 + 1 });
                let (mut reader, mut writer) = tokio::io::split(stream);
                let write = async {
                    writer.write_all(&question).await.unwrap();
                    writer.shutdown().await.unwrap();
                };
                let mut answer = Vec::new();
                let (_, read) = tokio::join!(write, reader.read_to_end(&mut answer));
                read.unwrap();
                assert!(answer == question);
            });
        }
        while let Some(done) = asks.join_next().await {
            done.unwrap();
        }
        assert_eq!(ours.stats().open_streams, 0);
    }
}

#[tokio::test]
async fn resets_and_ends_cross_implementations() {
    let (near, far) = duplex(PIPE);
    let ours = spawn_with(near, MuxRole::Server, MuxLimits::default());
    let (mut connection, mut opened) = yamux_peer(far, Mode::Client, 3).await;
    // Their drop is our reset.
    let mut dropped = opened.pop().unwrap();
    dropped.write_all(b"x").await.unwrap();
    let mut here = ours.accept().await.unwrap();
    assert_eq!(here.read_u8().await.unwrap(), b'x');
    drop(dropped);
    assert_eq!(code_of(&here.read_u8().await.unwrap_err()), Some(ResetCode::Cancelled));
    // Our reset, with its code, ends their stream and nothing else.
    let mut reset = opened.pop().unwrap();
    reset.write_all(b"y").await.unwrap();
    let mut here = ours.accept().await.unwrap();
    here.reset(ResetCode::Revoked);
    let mut rest = Vec::new();
    let _ = reset.read_to_end(&mut rest).await;
    assert!(rest.is_empty());
    let mut alive = opened.pop().unwrap();
    alive.write_all(b"z").await.unwrap();
    alive.shutdown().await.unwrap();
    let mut here = ours.accept().await.unwrap();
    let mut all = Vec::new();
    here.read_to_end(&mut all).await.unwrap();
    assert_eq!(all, b"z");
    // Our end ends their connection.
    ours.close(CloseCode::Normal, "done");
    connection.join_next().await.unwrap().unwrap();
}
