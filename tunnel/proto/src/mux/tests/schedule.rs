//! Who is sent first, and that everyone is sent.

use super::*;
use alloc::{collections::BTreeMap, vec};

/// The streams of the data frames in `bytes`, in order, with their sizes.
fn frames(mut bytes: &[u8]) -> Vec<(u32, u32)> {
    let mut frames = Vec::new();
    while let Some(head) = bytes.first_chunk::<HEADER>() {
        let header = Header::decode(head).unwrap();
        let body = if header.kind == Kind::Data { header.length } else { 0 };
        if header.kind == Kind::Data {
            frames.push((header.stream, header.length));
        }
        bytes = &bytes[HEADER + body as usize..];
    }
    frames
}

fn client_with(classes: &[Class]) -> (Mux, Vec<StreamKey>) {
    let mut client = mux(Role::Client);
    sent(&mut client);
    let keys = classes.iter().map(|class| client.open(*class).unwrap()).collect();
    (client, keys)
}

#[test]
fn urgent_streams_first() {
    let (mut client, keys) = client_with(&[Class::Bulk, Class::Watch, Class::Interactive]);
    for key in &keys {
        client.write(*key, b"hello").unwrap();
    }
    assert_eq!(frames(&sent(&mut client)), vec![(5, 5), (3, 5), (1, 5)]);
}

#[test]
fn frames_are_short_while_others_wait() {
    let (mut client, keys) = client_with(&[Class::Bulk, Class::Bulk]);
    client.write(keys[0], &[0; 40_000]).unwrap();
    client.write(keys[1], &[0; 20_000]).unwrap();
    assert_eq!(frames(&sent(&mut client)), vec![(1, 16384), (3, 16384), (1, 16384), (3, 3616), (1, 7232)]);
    client.write(keys[0], &[0; 100_000]).unwrap();
    assert_eq!(frames(&sent(&mut client)), vec![(1, 65536), (1, 34464)]);
}

#[test]
fn nobody_starves() {
    let classes = [Class::Interactive, Class::Interactive, Class::Watch, Class::Bulk, Class::Bulk];
    let (mut client, keys) = client_with(&classes);
    let mut shares = BTreeMap::new();
    for _ in 0..40 {
        for (key, n) in keys.iter().zip(1..) {
            // Everyone always has something to send; credit comes for free.
            if let Some(stream) = client.slots.get_mut(*key) {
                stream.send.credit = 1 << 20;
            }
            let _ = client.write(*key, &vec![n; 60_000]).unwrap();
        }
        let mut out = Outgoing::new();
        client.transmit(&mut out, START);
        let bytes: Vec<u8> = out.pieces().flatten().copied().collect();
        for (stream, size) in frames(&bytes) {
            *shares.entry(stream).or_insert(0) += size;
        }
    }
    let total: u32 = shares.values().sum();
    let percent = |id: u32| shares[&id] * 100 / total;
    assert!(percent(1) >= 20 && percent(1).abs_diff(percent(3)) <= 2, "{shares:?}");
    assert!(percent(5) >= 15, "{shares:?}");
    assert!(percent(7) >= 5 && percent(7).abs_diff(percent(9)) <= 2, "{shares:?}");
}

#[test]
fn control_frames_pass_waiting_data() {
    let (mut client, keys) = client_with(&[Class::Bulk]);
    client.write(keys[0], &[0; 100_000]).unwrap();
    hear(&mut client, &header(Kind::Ping, SYN, 0, 42));
    assert!(sent(&mut client).starts_with(&header(Kind::Ping, ACK, 0, 42)));
}

#[test]
fn bulk_leaves_room_for_the_rest() {
    let limits = MuxLimits { session_send_budget: 64 << 10, ..MuxLimits::default() };
    let mut client = Mux::new(Role::Client, limits, START);
    let (bulk, other) = (client.open(Class::Bulk).unwrap(), client.open(Class::Bulk).unwrap());
    let shell = client.open(Class::Interactive).unwrap();
    assert_eq!(client.write(bulk, &[0; 100_000]), Ok(32 << 10));
    assert_eq!(client.write(other, b"x"), Ok(0));
    assert_eq!(client.write(shell, b"ls"), Ok(2));
    sent(&mut client);
    assert!(events(&mut client).contains(&Event::Writable(other)));
    assert_eq!(client.write(other, b"x"), Ok(1));
}
