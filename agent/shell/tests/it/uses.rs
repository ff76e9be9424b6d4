//! What a shell is for.

use crate::{
    attacks::{HELD, resident},
    client::House,
};
use bytes::Bytes;
use http::StatusCode;
use moorline_proxy::wire::WantsUpgrade;
use moorline_shell::{
    Patience, Visitor,
    frames::{Input, Output, Size},
};
use std::time::Duration;

pub async fn commands_run_and_the_exit_code_is_told() {
    let house = House::new();
    let mut client = house.enter().await;
    assert_eq!(client.run("echo hello; echo ünï > /tmp/x; cat /tmp/x").await, ("hello\nünï".to_owned(), 0));
    assert_eq!(
        client.run("pwd; echo $TERM $HOME $KUBECONFIG; hostname").await.0,
        "/home/shell\ndumb /home/shell /home/shell/.kube/config\nedge1"
    );
    assert_eq!(client.run("tty").await.0, "/dev/console", "its terminal has a name");
    client.type_in("exit 7\r").await;
    assert_eq!(client.end().await, Some((7, "the shell ended with exit code 7".to_owned())));
    let mut client = house.enter().await;
    // The process itself says that it is there: what the shell has forked and not yet begun does not hear ^C.
    client.type_in("sh -c 'echo o\"\"n; exec sleep 1000'\r").await;
    client.until("on\r\n").await;
    client.type_in("\x03").await; // ^C reaches the foreground process
    assert_eq!(client.run("true").await.1, 0);
    client.send(Input::End).await;
    assert_eq!(client.end().await.map(|(code, _)| code), Some(0));
}

pub async fn the_window_has_the_clients_size() {
    let house = House::new();
    let mut client = house.enter().await;
    assert_eq!(client.run("stty size").await.0, "24 80");
    client.send(Input::Resize(Size { width: 132, height: 50 })).await;
    assert_eq!(client.run("stty size").await.0, "50 132");
    client.type_in("sh -c 'trap \"stty size; exit\" WINCH; echo o\"\"n; while :; do sleep 0.1; done'\r").await;
    client.until("on\r\n").await;
    client.send(Input::Resize(Size { width: 100, height: 30 })).await;
    client.until("30 100\r\n").await;
}

pub async fn keys_stop_and_end_what_runs() {
    let house = House::new();
    let mut client = house.enter().await;
    client.run("set -m").await; // as it was before this client came
    // It says itself when it runs: before that a key is the shell's.
    client.type_in("sh -c 'trap \"echo aga\"\"in\" CONT; echo o\"\"n; while :; do sleep 0.1; done'\r").await;
    client.until("on\r\n").await;
    client.type_in("\x1a").await; // ^Z
    assert!(client.run("jobs").await.0.contains("Stopped"));
    client.type_in("fg\r").await;
    client.until("again\r\n").await;
    client.type_in("\x1c").await; // ^\
    assert_eq!(client.run("test $? = 131").await.1, 0, "SIGQUIT ended it");
    assert_eq!(client.run("jobs").await.0, "");
}

pub async fn a_letter_of_many_bytes_is_taken_back_whole() {
    let house = House::new();
    let mut client = house.enter().await;
    // What is typed before cat is there, the shell's own editing reads.
    client.type_in("sh -c 'echo o\"\"n; exec cat > /tmp/letters'; echo ta''ken\r").await;
    client.until("on\r\n").await;
    client.type_in("aü\x7fb\r\x04").await;
    client.until("taken\r\n").await;
    assert_eq!(client.run("cat /tmp/letters").await.0, "ab");
}

pub async fn a_megabyte_can_be_pasted() {
    let house = House::new();
    let mut client = house.enter().await;
    client.type_in("sh -c 'echo o\"\"n; exec cat > /tmp/pasted'; echo ta''ken\r").await;
    client.until("on\r\n").await;
    let lines: Vec<String> = (0..8192).map(|n| format!("{n:0127}\n")).collect();
    for some in lines.chunks(128) {
        client.send(Input::Typed(Bytes::from(some.concat()))).await;
    }
    client.type_in("\x04").await;
    client.until("taken\r\n").await;
    assert_eq!(client.run("wc -c < /tmp/pasted").await.0, (1 << 20).to_string());
    assert_eq!(client.run("printf '%0127d\n' {0..8191} | cmp - /tmp/pasted").await, (String::new(), 0));
}

/// The agent holds no more of it than for one who does not read.
pub async fn a_gigabyte_of_output_arrives_whole() {
    const SIZE: usize = 1 << 30;
    let house = House::new();
    let mut client = house.enter().await;
    let (before, mut most) = (resident(), 0);
    client.type_in(&format!("stty -opost; head -c {SIZE} /dev/zero; exit\r")).await;
    let (nothing, mut zeros, mut looks) = (vec![0; SIZE >> 10], 0, 0);
    while let Some(output) = client.hear().await {
        let Output::Shown(bytes) = output else { continue };
        // Whole pieces at once: byte by byte a build for tests is slow.
        zeros += if nothing.starts_with(&bytes) { bytes.len() } else { bytes.iter().filter(|b| **b == 0).count() };
        if looks < zeros / nothing.len() {
            (looks, most) = (looks + 1, most.max(resident()));
        }
    }
    assert_eq!(zeros, SIZE);
    assert!(most.saturating_sub(before) < HELD, "{before} bytes have become {most}");
}

pub async fn calls_to_the_api_server_are_the_users() {
    let house = House::new();
    let mut client = house.enter().await;
    let call = "exec 3<>/dev/tcp/127.0.0.1/6443; printf 'GET /api/v1/pods HTTP/1.1\\r\\nHost: x\\r\\nConnection: close, x-hop\\r\\nX-Hop: 1\\r\\n\\r\\n' >&3; cat <&3";
    let (said, _) = client.run(call).await;
    assert!(said.starts_with("HTTP/1.1 200 OK") && said.ends_with("answered"), "{said}");
    let seen = house.kube.0.lock().unwrap();
    let (_, headers) = seen.iter().find(|(line, _)| line == "GET /api/v1/pods").expect("the call");
    assert_eq!(headers["x-hop"], "1", "who answers judges the headers, so all of them arrive");
}

pub async fn a_shell_in_which_nothing_is_typed_ends() {
    let house = House::patient(Patience { idle: Duration::from_secs(5), ..Patience::default() });
    let mut client = house.enter().await;
    client.type_in("while :; do echo busy; sleep 0.1; done\r").await;
    assert_eq!(client.end().await, Some((1, "nothing was typed for too long".to_owned())), "output is not typing");
    let house = House::patient(Patience { total: Duration::from_secs(1), ..Patience::default() });
    let mut client = house.enter_with("columns=80&rows=24").await;
    assert_eq!(client.end().await, Some((1, "a shell lasts no longer".to_owned())));
}

pub async fn a_request_that_is_no_websocket_is_told_so() {
    let house = House::new();
    let mut plain = house.request("");
    plain.extensions_mut().remove::<WantsUpgrade>();
    assert_eq!(house.shells.serve(plain, house.visitor()).await.status(), StatusCode::BAD_REQUEST);
    for header in ["upgrade", "sec-websocket-version", "sec-websocket-protocol", "sec-websocket-key"] {
        let mut bad = house.request("");
        bad.headers_mut().remove(header);
        assert_eq!(house.shells.serve(bad, house.visitor()).await.status(), StatusCode::BAD_REQUEST, "{header}");
    }
    assert_eq!(house.shells.open(), 0, "nothing was begun");
}

pub async fn a_client_comes_back_to_its_shell() {
    let house = House::patient(Patience { detached: Duration::from_secs(20), ..Patience::default() });
    let id = "0123456789abcdef0123456789abcdef";
    let mut client = house.enter_with(&format!("columns=80&rows=24&term=dumb&session={id}")).await;
    client.type_in("stty -echo; PS1=; PS2=; set +m; cd /tmp; echo be''gin\r").await;
    client.until("begin\r\n").await;
    // What runs goes on, and what it shows meanwhile is shown then; but nothing is asked of the API server.
    client.type_in("while [ ! -e go ]; do sleep 0.1; done; echo mean''while; touch gone\r").await;
    client.type_in("").await;
    drop(client);
    let mut taken = house.request(&format!("session={id}"));
    taken.headers_mut().insert("x", http::HeaderValue::from_static("1"));
    let answer = house.shells.serve(taken, house.visitor()).await;
    assert_eq!(answer.status(), StatusCode::CONFLICT, "one shell of an id");
    let other = Visitor { user: "bob".to_owned(), ..house.visitor() };
    let answer = house.shells.serve(house.request(&format!("session={id}&attach=1")), other).await;
    assert_eq!(answer.status(), StatusCode::NOT_FOUND, "nobody else's");
    let namesake = Visitor { uid: "u-2".to_owned(), ..house.visitor() };
    let answer = house.shells.serve(house.request(&format!("session={id}&attach=1")), namesake).await;
    assert_eq!(answer.status(), StatusCode::NOT_FOUND, "nor a namesake's");
    let mut back = house.enter_with(&format!("columns=80&rows=24&session={id}&attach=1")).await;
    back.type_in("\x03").await;
    back.type_in("touch go; pwd; while [ ! -e never ]; do sleep 0.1; done & echo a''gain\r").await;
    assert!(back.until("again\r\n").await.contains("/tmp"), "the same shell, where it was");

    // A client that is back takes the place of one whose connection has died unnoticed.
    let mut third = house.enter_with(&format!("columns=80&rows=24&session={id}&attach=1")).await;
    assert_eq!((back.end().await, back.closed), (None, Some(4409)), "the older one is let go, and told why");
    third.type_in("echo th''ird; exit 4\r").await;
    assert_eq!(third.end().await.map(|(code, _)| code), Some(4));
    let gone = house.shells.serve(house.request(&format!("session={id}&attach=1")), house.visitor()).await;
    assert_eq!(gone.status(), StatusCode::NOT_FOUND);
}

pub async fn a_shell_whose_client_stays_away_ends() {
    let house = House::patient(Patience { detached: Duration::from_millis(300), ..Patience::default() });
    let id = "f123456789abcdef0123456789abcdef";
    let mut client = house.enter_with(&format!("columns=80&rows=24&term=dumb&session={id}")).await;
    client.type_in("echo be''gin\r").await;
    client.until("begin\r\n").await;
    drop(client);
    while house.shells.open() > 0 || crate::client::processes() > 0 {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

pub async fn nothing_is_lost_or_shown_twice_when_a_client_comes_back() {
    let house = House::patient(Patience { detached: Duration::from_secs(20), ..Patience::default() });
    let id = "a123456789abcdef0123456789abcdef";
    let mut client = house.enter_with(&format!("columns=80&rows=24&term=dumb&session={id}")).await;
    client.type_in("stty -echo; PS1=; PS2=; set +m; echo be''gin\r").await;
    client.until("begin\r\n").await;
    client.type_in("for i in $(seq 20000); do echo line $i; done; echo do''ne\r").await;
    // It stops reading in the middle: what is on its way then is lost with the connection.
    let mut shown = std::mem::take(&mut client.seen);
    while shown.len() < 4000 {
        let Some(Output::Shown(bytes)) = client.hear().await else { panic!("ended") };
        shown.push_str(std::str::from_utf8(&bytes).unwrap());
    }
    let seen = client.shown;
    drop(client);
    let mut client = house.enter_with(&format!("session={id}&attach=1&seen={seen}")).await;
    let place = client.place().await;
    assert_eq!(place.shown, seen, "from where the client was");
    assert!(place.typed > 100, "{place:?}: what was typed was taken");
    shown += &client.until("done\r\n").await;
    let lines: Vec<&str> = shown.lines().filter(|line| !line.is_empty()).collect();
    let wanted: Vec<String> = (1..=20000).map(|n| format!("line {n}")).collect();
    assert_eq!(lines.len(), wanted.len());
    assert!(lines.iter().zip(&wanted).all(|(line, wanted)| line == wanted));

    // One that ends while nobody is there tells it to whoever comes back.
    client.type_in("sleep 0.3; echo la''st; exit 5\r").await;
    client.is_taken().await;
    let seen = client.shown;
    drop(client);
    // Its exit code waits to be asked for.
    while crate::client::statuses().iter().any(|status| !status.contains("\nState:\tZ")) {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let mut client = house.enter_with(&format!("session={id}&attach=1&seen={seen}")).await;
    assert!(client.place().await.typed > place.typed);
    assert_eq!(client.until("last\r\n").await, "");
    assert_eq!(client.end().await.map(|(code, _)| code), Some(5));
}

pub async fn a_shell_that_shows_much_waits_for_its_client() {
    const SIZE: usize = 4 << 20;
    let house = House::patient(Patience { detached: Duration::from_secs(20), ..Patience::default() });
    let id = "b123456789abcdef0123456789abcdef";
    let mut client = house.enter_with(&format!("columns=80&rows=24&term=dumb&session={id}")).await;
    let much = format!("head -c {SIZE} /dev/zero | tr '\\0' x > /tmp/x");
    client.type_in(&format!("stty -echo -opost; PS1=; PS2=; set +m; {much}; echo be''gin\r")).await;
    client.until("begin\n").await;
    client.type_in("sleep 0.2; cat /tmp/x; echo do''ne\r").await;
    client.is_taken().await;
    let seen = client.shown;
    drop(client);
    tokio::time::sleep(Duration::from_millis(600)).await; // more is better: nothing may be lost however long it takes
    let mut client = house.enter_with(&format!("session={id}&attach=1&seen={seen}")).await;
    assert_eq!(client.place().await.shown, seen);
    assert_eq!(client.until("done\n").await.len(), SIZE);
}
