use super::*;
use proptest::prelude::*;
use std::sync::mpsc::{Receiver, Sender, channel};

fn event(user: &str) -> Event {
    Event {
        audit_id: "1".into(),
        stage: Stage::ResponseComplete,
        request_uri: "/api".into(),
        verb: "get".into(),
        user: AuditUser { username: user.into(), uid: String::new(), groups: vec![] },
        impersonated_user: None,
        source_ips: vec!["127.0.0.1".into()],
        user_agent: "a\r\n\u{2028}\"".into(),
        object_ref: None,
        response_status: Some(ResponseStatus { code: 200 }),
        request_received_timestamp: now(),
        stage_timestamp: now(),
        annotations: BTreeMap::from([("moorline.dev/cluster", "a".to_owned())]),
    }
}

/// A writer that says when it was called, and returns when it is told to.
struct Gate {
    called: Sender<()>,
    go: Receiver<()>,
}
impl Output for Gate {}
impl io::Write for Gate {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let _ = self.called.send(());
        self.go.recv().map_err(|_| io::ErrorKind::BrokenPipe)?;
        Ok(bytes.len())
    }
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[tokio::test]
async fn z14_one_record_is_one_line() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("audit.log");
    let sink = FileSink::open(&path, Rotation::default(), OnFailure::Refuse).unwrap().0;
    sink.record(event("a\n{\"fake\":1}")).await.unwrap();
    sink.record(event("b")).await.unwrap();
    sink.close().await;
    assert_eq!(sink.record(event("c")).await, Err(AuditFull), "a closed log admits nothing");
    let text = std::fs::read_to_string(&path).unwrap();
    let lines: Vec<serde_json::Value> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(lines.len(), 2);
    assert_eq!(lines[0]["user"]["username"], "a\n{\"fake\":1}");
    assert_eq!(lines[0]["stage"], "ResponseComplete");
    assert_eq!(lines[0]["responseStatus"]["code"], 200);
    assert!(lines[0]["requestReceivedTimestamp"].as_str().unwrap().parse::<jiff::Timestamp>().is_ok());
    #[cfg(unix)]
    assert_eq!(
        std::os::unix::fs::PermissionsExt::mode(&std::fs::metadata(&path).unwrap().permissions()) & 0o777,
        0o600
    );
}

/// Any text, and often one that would matter to whoever reads line by line.
fn words() -> impl Strategy<Value = String> {
    let odd = [
        "\n",
        "\r\n",
        "\0",
        "\u{2028}",
        "\u{85}",
        "\"}\n{\"fake\":1}",
        "\",\"hash\":\"",
        "\\",
        "}",
        "\u{feff}",
        "\u{1b}[2J",
    ];
    prop_oneof![
        any::<String>(),
        prop::collection::vec(prop::sample::select(odd.to_vec()), 0..6).prop_map(|all| all.concat())
    ]
}

prop_compose! {
    fn any_user()(username in words(), uid in words(), groups in prop::collection::vec(words(), 0..4)) -> AuditUser {
        AuditUser { username, uid, groups }
    }
}

prop_compose! {
    fn any_object()(all in prop::array::uniform6(words())) -> ObjectRef {
        let [resource, namespace, name, api_group, api_version, subresource] = all;
        ObjectRef { resource, namespace, name, api_group, api_version, subresource }
    }
}

prop_compose! {
    fn any_event()(
        texts in prop::array::uniform6(words()),
        started in any::<bool>(),
        user in any_user(),
        impersonated_user in prop::option::of(any_user()),
        source_ips in prop::collection::vec(words(), 0..3),
        object_ref in prop::option::of(any_object()),
        code in prop::option::of(any::<u16>()),
        notes in prop::collection::vec(words(), 0..4),
    ) -> Event {
        let [audit_id, request_uri, verb, user_agent, request_received_timestamp, stage_timestamp] = texts;
        let keys = ["moorline.dev/cluster", "moorline.dev/trace-id", "moorline.dev/for", "moorline.dev/ended"];
        Event {
            audit_id,
            stage: if started { Stage::ResponseStarted } else { Stage::ResponseComplete },
            request_uri,
            verb,
            user,
            impersonated_user,
            source_ips,
            user_agent,
            object_ref,
            response_status: code.map(|code| ResponseStatus { code }),
            request_received_timestamp,
            stage_timestamp,
            annotations: keys.into_iter().zip(notes).collect(),
        }
    }
}

proptest! {
    /// Whatever stands in them: a record is a line, what is read back is what was recorded, and the chain goes through.
    #[test]
    fn z14_any_records_are_as_many_lines_and_one_chain(events in prop::collection::vec(any_event(), 1..6)) {
        let disk = Disk::default();
        lock(&disk.0).0 = usize::MAX;
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
        runtime.block_on(async {
            let sink = FileSink::to_writer(disk.clone(), Chain::default(), QUEUE, OnFailure::Refuse).unwrap();
            events.iter().for_each(|event| sink.push(event.clone()));
            sink.close().await;
        });
        let text = lock(&disk.0).1.clone();
        prop_assert!(text.ends_with(b"\n"));
        let lines: Vec<&[u8]> = text[..text.len() - 1].split(|byte| *byte == b'\n').collect();
        prop_assert_eq!(lines.len(), events.len());
        let mut chain = Chain::default();
        for (line, event) in lines.into_iter().zip(&events) {
            prop_assert_eq!(chain.follow(line), Ok(()));
            prop_assert!(line.iter().all(|byte| *byte >= b' '), "what a line is read by stays escaped");
            let mut back: serde_json::Value = serde_json::from_slice(line).unwrap();
            for own in ["seq", "prev", "hash"] {
                prop_assert!(back.as_object_mut().unwrap().remove(own).is_some());
            }
            prop_assert_eq!(back, serde_json::to_value(event).unwrap());
        }
    }
}

#[tokio::test(start_paused = true)]
async fn f49_a_blocked_sink_refuses_after_100_ms_and_recovers() {
    let ((called, was_called), (release, go)) = (channel(), channel());
    let sink = FileSink::to_writer(Gate { called, go }, Chain::default(), 2, OnFailure::Refuse).unwrap();
    sink.record(event("a")).await.unwrap();
    was_called.recv().unwrap(); // the writer is stuck with the first
    sink.record(event("b")).await.unwrap();
    let before = tokio::time::Instant::now();
    assert_eq!(sink.record(event("c")).await, Err(AuditFull));
    assert_eq!(before.elapsed().as_millis() / 10, 10, "the patience is 100 ms");
    sink.push(event("of a call that was admitted before")); // still taken
    for _ in 0..2 {
        release.send(()).unwrap();
    }
    was_called.recv().unwrap(); // with both that waited
    release.send(()).unwrap();
    while sink.shared.waiting.load(Ordering::Acquire) != 0 {
        tokio::task::yield_now().await;
    }
    sink.record(event("d")).await.unwrap();
    sink.close().await;
}

/// A disk of which the test says how many more bytes it takes.
#[derive(Clone, Default)]
struct Disk(Arc<Mutex<(usize, Vec<u8>)>>);
impl Output for Disk {}
impl io::Write for Disk {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let mut disk = lock(&self.0);
        let n = bytes.len().min(disk.0);
        if n == 0 {
            return Err(io::ErrorKind::StorageFull.into());
        }
        disk.0 -= n;
        disk.1.extend_from_slice(&bytes[..n]);
        Ok(n)
    }
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[tokio::test]
async fn s70_with_a_full_disk_no_call_is_admitted_and_no_record_lost() {
    let disk = Disk::default();
    lock(&disk.0).0 = 10; // a part of the first line
    let sink = FileSink::to_writer(disk.clone(), Chain::default(), 8, OnFailure::Refuse).unwrap();
    sink.record(event("a")).await.unwrap();
    while !sink.shared.failed.load(Ordering::Acquire) {
        tokio::task::yield_now().await;
    }
    for _ in 0..3 {
        assert_eq!(sink.record(event("b")).await, Err(AuditFull), "each call, not only the first");
    }
    sink.push(event("of a call that was admitted before"));
    lock(&disk.0).0 = usize::MAX;
    while sink.record(event("c")).await.is_err() {}
    sink.close().await;
    let text = String::from_utf8(lock(&disk.0).1.clone()).unwrap();
    let users: Vec<String> = text
        .lines()
        .map(|line| serde_json::from_str::<serde_json::Value>(line).unwrap()["user"]["username"].to_string())
        .collect();
    assert_eq!(users, [r#""a""#, r#""of a call that was admitted before""#, r#""c""#]);
}

#[tokio::test]
async fn a_full_disk_does_not_hold_up_the_end() {
    let sink = FileSink::to_writer(Disk::default(), Chain::default(), 8, OnFailure::Refuse).unwrap();
    sink.record(event("a")).await.unwrap();
    sink.close().await;
}

#[tokio::test]
async fn s70_where_calls_go_on_by_policy_the_log_says_what_it_lacks() {
    let disk = Disk::default();
    let sink = FileSink::to_writer(disk.clone(), Chain::default(), 2, OnFailure::Continue).unwrap();
    sink.record(event("a")).await.unwrap();
    while sink.healthy() {
        tokio::task::yield_now().await;
    }
    for _ in 0..5 {
        assert_eq!(sink.record(event("b")).await, Ok(()), "calls go on");
    }
    assert_eq!(sink.lost(), 4, "one waits with the first, for two may");
    lock(&disk.0).0 = usize::MAX;
    while !sink.healthy() || sink.shared.waiting.load(Ordering::Acquire) != 0 {
        tokio::task::yield_now().await;
    }
    sink.close().await;
    let text = String::from_utf8(lock(&disk.0).1.clone()).unwrap();
    let mut chain = Chain::default();
    text.lines().for_each(|line| chain.follow(line.as_bytes()).unwrap());
    assert_eq!((text.lines().count(), text.matches("\"lostRecords\":4").count()), (3, 1), "{text}");
}

#[tokio::test]
async fn s70_what_says_that_records_are_missing_is_never_half_written_nor_forgotten() {
    let disk = Disk::default();
    let sink = FileSink::to_writer(disk.clone(), Chain::default(), 1, OnFailure::Continue).unwrap();
    sink.record(event("a")).await.unwrap();
    while sink.healthy() {
        tokio::task::yield_now().await;
    }
    sink.record(event("lost")).await.unwrap();
    let mut first = Vec::new();
    Chain::default().seal(&serde_json::to_vec(&event("a")).unwrap(), &mut first);
    lock(&disk.0).0 = first.len() + 20; // all that waits, and a part of what is then said
    while sink.shared.waiting.load(Ordering::Acquire) != 0 || sink.healthy() {
        tokio::task::yield_now().await;
    }
    lock(&disk.0).0 = usize::MAX;
    while !sink.healthy() {
        tokio::task::yield_now().await;
    }
    sink.record(event("b")).await.unwrap();
    sink.close().await;
    let text = String::from_utf8(lock(&disk.0).1.clone()).unwrap();
    let mut chain = Chain::default();
    text.lines().for_each(|line| chain.follow(line.as_bytes()).unwrap());
    assert_eq!((text.lines().count(), text.matches("\"lostRecords\":1,").count()), (3, 1), "{text}");
}

#[tokio::test]
async fn s70_what_a_closed_log_does_not_take_is_counted() {
    let sink = FileSink::to_writer(Disk::default(), Chain::default(), 8, OnFailure::Refuse).unwrap();
    sink.record(event("a")).await.unwrap();
    sink.push(event("b"));
    sink.close().await;
    assert_eq!(sink.lost(), 2, "they could not be written to the end");
    sink.push(event("of a call that ends later"));
    assert_eq!(sink.lost(), 3);
}

#[test]
fn what_is_said_of_a_log_that_cannot_be_written_is_what_happens() {
    let (refuse, goes_on) = (OnFailure::Refuse.meanwhile(9), OnFailure::Continue.meanwhile(9));
    assert!(refuse.contains("calls are refused until it can"), "{refuse}");
    assert!(
        goes_on.contains("calls go on") && goes_on.contains("9 records wait") && goes_on.contains("lost"),
        "{goes_on}"
    );
}

#[tokio::test]
async fn a_reader_that_stands_still_does_not_hold_up_the_end() {
    let ((called, was_called), (_let_go, go)) = (channel(), channel());
    let sink = FileSink::to_writer(Gate { called, go }, Chain::default(), 8, OnFailure::Refuse).unwrap();
    sink.record(event("a")).await.unwrap();
    was_called.recv().unwrap();
    sink.record(event("b")).await.unwrap();
    assert_eq!(sink.close_within(Duration::from_millis(1)).await, 2, "and how many are missing is known");
}

#[tokio::test]
async fn a_log_that_nobody_holds_any_more_is_written_to_its_end() {
    let ((called, calls), (let_go, go)) = (channel(), channel());
    let sink = FileSink::to_writer(Gate { called, go }, Chain::default(), 2, OnFailure::Refuse).unwrap();
    sink.record(event("a")).await.unwrap();
    drop(sink);
    let patience = Duration::from_secs(30);
    calls.recv_timeout(patience).unwrap();
    let_go.send(()).unwrap();
    let end = calls.recv_timeout(patience);
    assert_eq!(end, Err(std::sync::mpsc::RecvTimeoutError::Disconnected), "its thread has ended");
}
