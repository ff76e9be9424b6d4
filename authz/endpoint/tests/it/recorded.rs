//! Sessions in terminals that are recorded on the direct way.

use crate::{
    proxying::{EXEC, ended_within, open},
    world::{SOON, World, bundle, eventually, token},
};
use moorline_authz::access::Recording;
use moorline_endpoint::recordings::{outbox, store};
use moorline_proxy::tape::{Outbox, is_of};
use std::{fs, sync::Arc};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    time::timeout,
};
use tokio_rustls::client::TlsStream;

const CHANNELS: &str = "Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Protocol: v5.channel.k8s.io\r\n";
/// What a client types, channel 0, and the API server's place says back.
const TYPED: &[u8] = b"\x82\x04\0rm\n";
/// A frame of channel 1: what a terminal shows. The echo makes it the answer.
const SHOWN: &[u8] = b"\x82\x05\x01$ ls";

async fn world(max_file: u64, max_total: u64) -> World {
    let world = World::recording(max_file, max_total).await;
    let mut recorded = bundle(2);
    recorded.record = Recording::Always;
    world.next(&recorded).await;
    world
}

async fn says(stream: &mut TlsStream<TcpStream>, bytes: &[u8]) {
    stream.write_all(bytes).await.unwrap();
    stream.flush().await.unwrap();
    let mut echo = vec![0; bytes.len()];
    timeout(SOON, stream.read_exact(&mut echo)).await.unwrap().unwrap();
    assert_eq!(echo, bytes, "the client has what the cluster sent");
}

/// The one that is over, once it is.
async fn only(outbox: &Outbox) -> String {
    eventually(|| outbox.list(9).unwrap().len() == 1).await;
    outbox.list(9).unwrap().remove(0)
}

/// What is on record by now.
fn so_far(world: &World) -> String {
    String::from_utf8(world.queue.after(0).unwrap().lines).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_session_on_the_direct_way_is_on_record_and_its_hash_in_the_audit_record_of_its_end() {
    let world = world(1 << 20, 1 << 24).await;
    let mut shell = open(&world, &token("anna"), EXEC, CHANNELS).await;
    says(&mut shell, SHOWN).await;
    says(&mut shell, TYPED).await;
    let outbox = outbox(world.dir.path());
    assert_eq!(outbox.list(9).unwrap(), [""; 0], "it goes on");
    drop(shell);
    let name = only(&outbox).await;
    assert!(is_of(&name, "edge1"), "{name}");
    let cast = String::from_utf8(outbox.piece(&name, 0, 1 << 20).unwrap().unwrap()).unwrap();
    assert!(cast.contains("\"o\", \"$ ls\"]") && !cast.contains("\"i\"") && !cast.contains("rm"), "{cast}");
    assert!(cast.contains("\"user\":\"anna\"") && cast.contains("\"cluster\":\"edge1\""), "{cast}");
    #[cfg(unix)]
    {
        use std::os::unix::fs::PermissionsExt;
        let dir = world.dir.path().join("recordings");
        let mode = |path: &std::path::Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
        assert_eq!((mode(&dir), mode(&dir.join(format!("{name}.cast")))), (0o700, 0o600));
    }
    // The record is made when the recording is sealed.
    eventually(|| so_far(&world).contains("recording-sha256")).await;
    let log = world.audit().await;
    let ended = log.lines().find(|line| line.contains("recording-sha256")).unwrap();
    let sha = ended.split("recording-sha256\":\"").nth(1).unwrap().split('"').next().unwrap();
    assert!(ended.contains(&format!("\"moorline.dev/recording\":\"{name}\"")) && ended.contains("anna"), "{ended}");
    assert!(outbox.forget(&name, sha).unwrap() && outbox.list(9).unwrap().is_empty(), "it is the file's: {sha}");
}

#[tokio::test(flavor = "multi_thread")]
async fn f32_where_no_room_is_left_or_the_folder_is_gone_no_session_begins_that_has_to_be_recorded() {
    let world = world(3000, 5000).await;
    let auth = format!("Authorization: Bearer {}", token("anna"));
    let upgrade: Vec<&str> = CHANNELS.trim_end().split("\r\n").chain([auth.as_str()]).collect();
    let mut shell = open(&world, &token("anna"), EXEC, CHANNELS).await;
    for _ in 0..15 {
        says(&mut shell, &[b"\x82\x65\x01", &[b'x'; 100][..]].concat()).await;
    }
    drop(shell);
    let outbox = outbox(world.dir.path());
    let name = only(&outbox).await;
    let before = world.up.lines().len();
    let full = world.send("GET", EXEC, &upgrade).await;
    assert!(full.code == 503 && full.text.contains("recorded here") && full.text.contains("full"), "{full:?}");
    assert_eq!(world.get(&token("anna"), "/api/v1/pods").await.code, 200, "everything else passes");
    assert_eq!(outbox.list(9).unwrap(), [name.as_str()], "none is removed for another");
    // The hub has it: there is room again, and nobody had to be told.
    fs::remove_file(world.dir.path().join(format!("recordings/{name}.cast"))).unwrap();
    let mut shell = open(&world, &token("anna"), EXEC, CHANNELS).await;
    says(&mut shell, SHOWN).await;
    // A protocol that is not read is not served either.
    let own = CHANNELS.replace("v5.channel.k8s.io", "own");
    let own: Vec<&str> = own.trim_end().split("\r\n").chain([auth.as_str()]).collect();
    assert_eq!(world.send("GET", EXEC, &own).await.code, 502);
    drop(shell);
    only(&outbox).await;
    fs::remove_dir_all(world.dir.path().join("recordings")).unwrap();
    let gone = world.send("GET", EXEC, &upgrade).await;
    assert!(gone.code == 503 && gone.text.contains("recorded here"), "{gone:?}");
    assert_eq!(world.up.lines().iter().filter(|line| line.contains("/exec")).count(), 3, "{before}");
}

#[tokio::test(flavor = "multi_thread")]
async fn one_that_is_as_long_as_may_be_ends_and_what_a_crash_cut_short_is_sealed_and_told() {
    let world = world(2000, 1 << 24).await;
    let mut shell = open(&world, &token("anna"), EXEC, CHANNELS).await;
    let frame = [b"\x82\x65\x01", &[b'x'; 100][..]].concat();
    let _ = async {
        for _ in 0..10_000 {
            shell.write_all(&frame).await?;
            shell.flush().await?;
            shell.read_exact(&mut vec![0; frame.len()]).await?;
        }
        std::io::Result::Ok(())
    }
    .await;
    ended_within(SOON, shell, "a session whose recording is too long").await;
    eventually(|| so_far(&world).contains("recording_too_long")).await;

    struct Told(std::sync::Mutex<Vec<moorline_proxy::audit::Event>>);
    impl moorline_proxy::audit::AuditSink for Told {
        fn admit(&self) -> futures_util::future::BoxFuture<'_, Result<(), moorline_proxy::audit::AuditFull>> {
            Box::pin(std::future::ready(Ok(())))
        }
        fn push(&self, event: moorline_proxy::audit::Event) {
            self.0.lock().unwrap().push(event);
        }
    }
    let (dir, told) = (tempfile::tempdir().unwrap(), Arc::new(Told(Default::default())));
    fs::create_dir(dir.path().join("recordings")).unwrap();
    fs::write(dir.path().join("recordings/20261121101500-ab-cd.part"), "x").unwrap();
    store(dir.path(), 1, 1, Arc::clone(&told) as _).unwrap();
    let told = told.0.lock().unwrap();
    assert_eq!((told[0].verb.as_str(), told[0].user.username.as_str()), ("seal", "moorline:endpoint"));
    assert_eq!(told[0].annotations["moorline.dev/recording-sha256"].len(), 64);
    assert_eq!(outbox(dir.path()).list(9).unwrap(), ["20261121101500-ab-cd"]);
}
