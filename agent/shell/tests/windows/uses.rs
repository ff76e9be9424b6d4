//! What a shell on Windows is for, and what it must not do.

use crate::{
    client::{Client, House},
    probe::line,
};
use bytes::Bytes;
use http::StatusCode;
use moorline_proxy::wire::WantsUpgrade;
use moorline_shell::{
    Patience, Shells,
    frames::{Input, Size},
};
use std::{
    path::{Path, PathBuf},
    process::Stdio,
    sync::Arc,
    time::Duration,
};
use tempfile::TempDir;
use tokio::{
    io::{AsyncBufReadExt, AsyncReadExt, BufReader},
    net::TcpListener,
};

/// Shells that find their console under Wine too: what begins in one there has no input and output of its own.
fn new_house(patience: Patience) -> (House, TempDir) {
    let root = tempfile::tempdir().unwrap();
    std::fs::write(root.path().join("shell.cmd"), "@cmd /D <CON >CON 2>CON\r\n@exit %errorlevel%\r\n").unwrap();
    (House { shells: Shells::new(root.path().to_owned(), patience), kube: Arc::default() }, root)
}

/// A client whose window does not break the lines of these tests.
async fn enter(house: &House, query: &str) -> Client {
    let mut client = house.enter_with(&format!("columns=200&rows=50{query}")).await;
    client.type_in("prompt $G\r").await;
    client.type_in("echo be^gin\r").await;
    client.until("begin").await;
    client
}

fn is_wine() -> bool {
    std::env::var_os("WINEPREFIX").is_some() || std::env::var_os("WINELOADERNOEXEC").is_some()
}

/// What a program shows between `<` and `>`.
async fn probe(client: &mut Client, what: &str) -> String {
    client.type_in(&line(what)).await;
    answer(client).await
}

async fn answer(client: &mut Client) -> String {
    loop {
        client.until("<").await;
        // A prompt may come first, or what was typed.
        let answer = client.until(">").await;
        if !answer.is_empty() && !answer.contains('\x1b') {
            return answer;
        }
    }
}

pub async fn commands_run_and_the_exit_code_is_told() {
    let (house, _root) = new_house(Patience::default());
    let mut client = enter(&house, "").await;
    client.type_in("echo hel^lo ünï\r").await;
    client.until("hello ünï").await;
    client.type_in("echo o^ne\n").await; // as a script has it that is piped in
    client.until("one").await;
    client.type_in("echo t^wo\r\n").await;
    client.until("two").await;
    client.type_in("exit 7\r").await;
    assert_eq!(client.end().await, Some((7, "the shell ended with exit code 7".to_owned())));
}

/// Consoles of Wine's have one size for good, and say so.
pub async fn a_window_that_cannot_change_does_not_disturb() {
    let (house, _root) = new_house(Patience::default());
    let mut client = enter(&house, "").await;
    client.send(Input::Resize(Size { width: 132, height: 40 })).await;
    client.type_in("exit 3\r").await;
    assert_eq!(client.end().await.map(|(code, _)| code), Some(3));
}

pub async fn what_runs_hears_ctrl_c() {
    let (house, _root) = new_house(Patience::default());
    let mut client = enter(&house, "").await;
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    client.type_in(&line(&format!("hold {}", listener.local_addr().unwrap()))).await;
    let mut held = listener.accept().await.unwrap().0;
    let mut here = [0; 4];
    held.read_exact(&mut here).await.unwrap();
    client.type_in("\x03").await;
    let end = held.read(&mut here).await;
    assert!(matches!(end, Ok(0) | Err(_)), "it is gone");
}

pub async fn nothing_of_the_agents_environment_is_there() {
    // SAFETY: nothing else of this process reads its environment now.
    #[allow(unsafe_code)]
    unsafe {
        std::env::set_var("MOORLINE_TOKEN", "secret-of-the-agent");
    }
    let (house, _root) = new_house(Patience::default());
    let mut client = enter(&house, "").await;
    client.type_in("set & echo do^ne\r").await;
    let shown = client.until("done").await;
    assert!(!shown.contains("secret-of-the-agent"), "{shown}");
    assert!(shown.contains("KUBECONFIG=") && shown.contains("USERNAME=shell"), "{shown}");
}

pub async fn calls_to_the_api_server_are_the_users() {
    let (house, _root) = new_house(Patience::default());
    let mut client = enter(&house, "").await;
    assert_eq!(probe(&mut client, "get /api/v1/pods").await, "HTTP/1.1 200 OK");
    {
        let seen = house.kube.0.lock().unwrap();
        let (_, headers) = seen.iter().find(|(line, _)| line == "GET /api/v1/pods").expect("the call, without the key");
        assert_eq!(headers["x-hop"], "1");
    }
    assert_eq!(probe(&mut client, "get ?/api/v1/pods").await, "HTTP/1.1 403 Forbidden", "who has no key");
    assert_eq!(house.kube.0.lock().unwrap().len(), 1);
}

pub async fn a_megabyte_can_be_pasted() {
    let (house, _root) = new_house(Patience::default());
    let mut client = enter(&house, "").await;
    assert_eq!(probe(&mut client, "count").await, "ready");
    let lines = Bytes::from(format!("{}\r", "x".repeat(127)).repeat(128));
    for _ in 0..64 {
        client.send(Input::Typed(lines.clone())).await;
    }
    client.type_in("end\r").await;
    assert_eq!(answer(&mut client).await, format!("{} bytes", 127 * 128 * 64));
}

pub async fn a_megabyte_of_output_arrives() {
    let (house, _root) = new_house(Patience::default());
    let mut client = enter(&house, "").await;
    client.type_in(&line("much")).await;
    client.until("<done>").await;
}

pub async fn a_shell_in_which_nothing_is_typed_ends() {
    let (house, _root) = new_house(Patience { idle: Duration::from_secs(2), ..Patience::default() });
    let mut client = house.enter_with("columns=80&rows=24").await;
    assert_eq!(client.end().await, Some((1, "nothing was typed for too long".to_owned())));
    let (house, _root) = new_house(Patience { total: Duration::from_secs(1), ..Patience::default() });
    let mut client = house.enter_with("columns=80&rows=24").await;
    assert_eq!(client.end().await, Some((1, "a shell lasts no longer".to_owned())));
}

pub async fn what_is_typed_may_end() {
    let (house, _root) = new_house(Patience::default());
    let mut client = enter(&house, "").await;
    client.type_in("echo la^st\r").await;
    client.send(Input::End).await;
    client.until("last").await;
    assert_eq!(client.end().await.map(|(code, _)| code), Some(0));
    // A program that reads finds the end too.
    let mut client = enter(&house, "").await;
    assert_eq!(probe(&mut client, "count").await, "ready");
    client.type_in("four\r").await;
    client.send(Input::End).await;
    assert_eq!(answer(&mut client).await, "4 bytes");
    assert!(client.end().await.is_some());
}

pub async fn a_client_comes_back_to_its_shell() {
    let (house, _root) = new_house(Patience { detached: Duration::from_secs(30), ..Patience::default() });
    let id = "0123456789abcdef0123456789abcdef";
    let mut client = enter(&house, &format!("&session={id}")).await;
    client.type_in("set MARK=mar^k-of-mine\r").await;
    client.is_taken().await;
    let seen = client.shown;
    drop(client);
    let mut back = house.enter_with(&format!("session={id}&attach=1&seen={seen}")).await;
    assert_eq!(back.place().await.shown, seen);
    back.type_in("echo =%MARK%=\r").await;
    back.until("=mark-of-mine=").await;
    back.type_in("exit 4\r").await;
    assert_eq!(back.end().await.map(|(code, _)| code), Some(4));
}

async fn home_of(client: &mut Client) -> PathBuf {
    client.type_in("echo =%HOME%=\r").await;
    client.until("=").await;
    let mut home = client.until("=").await;
    if home.contains('%') {
        client.until("=").await;
        home = client.until("=").await;
    }
    PathBuf::from(home)
}

/// An agent whose shell has said where it is at home, until it is killed.
pub async fn agent() {
    let (house, _root) = new_house(Patience::default());
    let mut client = enter(&house, "").await;
    println!("{}", home_of(&mut client).await.display());
    std::future::pending().await
}

pub async fn what_a_killed_agent_left_behind_is_swept_and_the_living_keep_theirs() {
    let mut agent = tokio::process::Command::new(std::env::current_exe().unwrap());
    let mut agent = agent.args(["probe", "agent"]).stdout(Stdio::piped()).kill_on_drop(true).spawn().unwrap();
    let mut line = String::new();
    BufReader::new(agent.stdout.take().unwrap()).read_line(&mut line).await.unwrap();
    let left = PathBuf::from(line.trim());
    let (house, _root) = new_house(Patience::default());
    let mut client = enter(&house, "").await;
    let own = home_of(&mut client).await;
    let sweep = async || {
        // Folders are listed by their names: when this is gone, the others have been looked at.
        let last = std::env::temp_dir().join("moorline-shell-z");
        std::fs::create_dir(&last).unwrap();
        std::fs::write(last.join("file"), "left").unwrap();
        let _house = new_house(Patience::default());
        while last.exists() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    sweep().await;
    let whole = |home: &Path| home.join("kubeconfig").is_file();
    assert!(whole(&left) && whole(&own), "of agents that live");
    agent.kill().await.unwrap();
    assert!(whole(&left), "nobody was there to remove it");
    sweep().await;
    assert!(!left.exists() && whole(&own));
}

pub async fn nothing_outlives_its_client() {
    let (house, _root) = new_house(Patience::default());
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let mut client = enter(&house, "").await;
    let home = home_of(&mut client).await;
    assert!(home.is_dir(), "{home:?}");
    let start = line(&format!("hold {}", listener.local_addr().unwrap()));
    client.type_in(&format!("start /b \"\" {start}")).await; // goes on beside the shell
    let (mut held, _) = listener.accept().await.unwrap();
    let mut here = [0; 4];
    held.read_exact(&mut here).await.unwrap();
    drop(client);
    let end = held.read(&mut here).await;
    assert!(matches!(end, Ok(0) | Err(_)), "its process is gone");
    while house.shells.open() > 0 || home.exists() {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

pub async fn a_node_that_shows_its_secrets_gives_no_shell() {
    let folder = tempfile::tempdir().unwrap();
    let missing = folder.path().join("missing");
    let (house, _root) = new_house(Patience::default());
    let shells = Shells::new("/".into(), Patience::default()).hiding(vec![missing.clone()]);
    let mut request = house.request("");
    request.extensions_mut().insert(WantsUpgrade);
    assert_eq!(shells.serve(request, house.visitor()).await.status(), StatusCode::SWITCHING_PROTOCOLS);
    let shells = Shells::new("/".into(), Patience::default()).hiding(vec![missing, folder.path().to_owned()]);
    let answer = shells.serve(house.request(""), house.visitor()).await;
    assert_eq!(answer.status(), StatusCode::INTERNAL_SERVER_ERROR, "a folder that this user may read");
    assert_eq!(shells.open(), 0);
}

pub async fn a_shell_has_no_rights_of_the_agents() {
    let (house, _root) = new_house(Patience::default());
    let mut client = enter(&house, "").await;
    let rights = probe(&mut client, "rights").await;
    assert!(rights.starts_with("job 1 privileges "), "{rights}");
    let field = |name: &str| -> u32 {
        let mut words = rights.split(' ').skip_while(|word| *word != name).skip(1);
        words.next().unwrap().parse().unwrap()
    };
    assert!(1 <= field("denied"), "{rights}: not as an administrator");
    // Wine takes no privileges away.
    assert!(field("privileges") <= 1 || is_wine(), "{rights}: to walk through folders, as everybody may, and no other");
}
