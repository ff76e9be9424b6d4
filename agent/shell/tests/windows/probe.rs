//! What runs within the shells: this very program, started as one of these.
#![allow(unsafe_code)]

use std::{
    env,
    io::{BufRead, Read, Write, stdin},
    net::TcpStream,
    process::ExitCode,
    ptr::null_mut,
    time::Duration,
};
use windows_sys::Win32::{
    Foundation::HANDLE,
    Security::{GetTokenInformation, TOKEN_QUERY, TokenElevation, TokenGroups, TokenPrivileges},
    System::{
        JobObjects::IsProcessInJob,
        Threading::{GetCurrentProcess, OpenProcessToken},
    },
};

/// The line that starts this program as `what`.
pub fn line(what: &str) -> String {
    format!("\"{}\" probe {what}\r", env::current_exe().unwrap().display())
}

pub fn run() -> Option<ExitCode> {
    let mut arguments = env::args().skip(1);
    if arguments.next()? != "probe" {
        return None;
    }
    match arguments.next()?.as_str() {
        "hold" => hold(&arguments.next()?),
        "get" => get(&arguments.next()?),
        "count" => count(),
        "much" => much(),
        "rights" => rights(),
        "agent" => {
            let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
            runtime.block_on(crate::uses::agent());
        }
        other => panic!("{other}"),
    }
    Some(ExitCode::SUCCESS)
}

/// A connection that is open as long as this process.
fn hold(addr: &str) {
    let mut conn = TcpStream::connect(addr).unwrap();
    conn.write_all(b"here").unwrap();
    std::thread::sleep(Duration::from_secs(1000));
}

/// As kubectl would: what the kubeconfig says, and the path. `?`: without the kubeconfig's own path.
fn get(path: &str) {
    let config = std::fs::read_to_string(env::var("KUBECONFIG").unwrap()).unwrap();
    let server = config.split("http://").nth(1).unwrap().split('"').next().unwrap();
    let (addr, key) = server.split_at(server.find('/').unwrap());
    let path = path.strip_prefix('?').map_or_else(|| format!("{key}{path}"), str::to_owned);
    let mut conn = TcpStream::connect(addr).unwrap();
    conn.write_all(format!("GET {path} HTTP/1.1\r\nHost: x\r\nX-Hop: 1\r\nConnection: close\r\n\r\n").as_bytes())
        .unwrap();
    let mut answer = String::new();
    conn.read_to_string(&mut answer).unwrap();
    println!("<{}>", answer.lines().next().unwrap());
}

/// Counts what is typed until a line `end`.
fn count() {
    println!("<ready>");
    let mut bytes = 0;
    for line in stdin().lock().lines() {
        match line.unwrap().trim_end() {
            "end" => break,
            line => bytes += line.len(),
        }
    }
    println!("<{bytes} bytes>");
}

/// A megabyte in lines that are numbered.
fn much() {
    let mut out = std::io::stdout().lock();
    for n in 0..1024 * 16 {
        writeln!(out, "{n:07} {}", "x".repeat(54)).unwrap();
    }
    writeln!(out, "<done>").unwrap();
}

/// What this process may: `job`, then the number of its privileges, whether it is elevated, and of what groups it is
/// `deny-only`.
fn rights() {
    let (mut token, mut inside) = (null_mut(), 0);
    // SAFETY: the process is this one; the places are their own.
    unsafe {
        assert_ne!(IsProcessInJob(GetCurrentProcess(), null_mut(), &mut inside), 0);
        assert_ne!(OpenProcessToken(GetCurrentProcess(), TOKEN_QUERY, &mut token), 0);
    }
    let privileges = information(token, TokenPrivileges)[0] & 0xffff_ffff;
    let elevated = information(token, TokenElevation)[0] & 0xffff_ffff;
    let groups = information(token, TokenGroups);
    // A count, then pairs of pointer and attributes, eight bytes each; 0x10: for denying alone.
    let denied = groups[1..].chunks(2).take((groups[0] & 0xffff_ffff) as usize).filter(|pair| pair[1] & 0x10 != 0);
    println!("<job {inside} privileges {privileges} elevated {elevated} denied {}>", denied.count());
}

fn information(token: HANDLE, class: i32) -> Vec<u64> {
    let mut place = vec![0u64; 1024];
    let mut used = 0;
    // SAFETY: the place has the size that is said.
    let ok = unsafe { GetTokenInformation(token, class, place.as_mut_ptr().cast(), 8192, &mut used) };
    assert_ne!(ok, 0, "{}", std::io::Error::last_os_error());
    place
}
