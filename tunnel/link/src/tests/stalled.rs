//! Readers that stand still, by the dozen.

use super::{echo, faults::soon};
use crate::{Carrier, Limits, tls::tests::connected};
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

/// Once what they hold is all that the session may hold, some of them have to go.
#[tokio::test]
async fn readers_that_stand_still_are_reset_when_others_need_the_room() {
    for carrier in [Carrier::Quic, Carrier::Tls, Carrier::WebSocket] {
        let limits = Limits {
            stream_window: 256 << 10,
            session_window: 2 << 20,
            stall_grace: Duration::from_secs(1),
            ..Limits::default()
        };
        let (hub, agent, _listener) = connected(carrier, &limits).await;
        let serving = tokio::spawn(async move {
            while let Some(stream) = agent.accept().await {
                tokio::spawn(async move {
                    let mut stream = stream.accept();
                    while stream.write_all(&[7; 64 << 10]).await.is_ok() {}
                });
            }
        });
        let mut stalled = Vec::new();
        for _ in 0..12 {
            stalled.push(soon(hub.open(&echo())).await.unwrap());
        }
        for stream in &mut stalled {
            let _ = soon(stream.accepted()).await; // something has come
        }
        let mut lively = soon(hub.open(&echo())).await.unwrap();
        let mut space = vec![0; 1 << 20];
        tokio::time::timeout(Duration::from_secs(20), lively.read_exact(&mut space)).await.expect("it hangs").unwrap();
        assert!(space.iter().all(|byte| *byte == 7), "{carrier}");
        let cut = hub.relieved();
        assert!((1..=12).contains(&cut), "{carrier}: {cut}");
        assert!(hub.buffered().is_none_or(|held| held <= 3 << 20), "{carrier}: {:?}", hub.buffered());
        serving.abort();
    }
}
