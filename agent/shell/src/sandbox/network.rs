//! The shell's own network: a loopback, and one listener on it that the agent serves.

use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage,
    SendFlags, SocketType, recv, recvmsg, send, sendmsg, socket,
};
use std::{
    io::{self, IoSlice, IoSliceMut},
    mem::MaybeUninit,
    os::{
        fd::{BorrowedFd, OwnedFd},
        unix::net::UnixStream,
    },
};

/// Goes along with the descriptor, for a message without bytes is none.
const MARK: u8 = b'L';
/// The loopback is the first interface of a network namespace.
const LOOPBACK: i32 = 1;

/// Brings the loopback of a new network namespace up: one `RTM_NEWLINK` (rtnetlink(7)) and its acknowledgement.
pub(super) fn loopback_up() -> io::Result<()> {
    const LENGTH: usize = 32;
    let mut message = Vec::with_capacity(LENGTH);
    // struct nlmsghdr
    message.extend_from_slice(&u32::try_from(LENGTH).unwrap_or_default().to_ne_bytes());
    message.extend_from_slice(&16_u16.to_ne_bytes()); // RTM_NEWLINK
    message.extend_from_slice(&5_u16.to_ne_bytes()); // NLM_F_REQUEST | NLM_F_ACK
    message.extend_from_slice(&1_u32.to_ne_bytes()); // sequence
    message.extend_from_slice(&0_u32.to_ne_bytes()); // to the kernel
    // struct ifinfomsg
    message.extend_from_slice(&[0; 4]);
    message.extend_from_slice(&LOOPBACK.to_ne_bytes());
    message.extend_from_slice(&1_u32.to_ne_bytes()); // IFF_UP
    message.extend_from_slice(&1_u32.to_ne_bytes()); // of the flags only this one
    let kernel = socket(AddressFamily::NETLINK, SocketType::RAW, None)?; // NETLINK_ROUTE is protocol 0
    send(&kernel, &message, SendFlags::empty())?;
    let mut answer = [0_u8; 256];
    let (n, _) = recv(&kernel, &mut answer, RecvFlags::empty())?;
    // struct nlmsgerr behind the header: 0, or an errno below it
    match answer.get(..n).and_then(|answer| answer.get(16..20)).and_then(|code| code.try_into().ok()) {
        Some(code) => match i32::from_ne_bytes(code) {
            0 => Ok(()),
            error => Err(io::Error::from_raw_os_error(-error)),
        },
        None => Err(io::Error::other("the kernel's answer cannot be read")),
    }
}

/// Hands a descriptor over.
pub(super) fn send_fd(to: &UnixStream, fd: BorrowedFd<'_>) -> io::Result<()> {
    let fds = [fd];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut ancillary = SendAncillaryBuffer::new(&mut space);
    if !ancillary.push(SendAncillaryMessage::ScmRights(&fds)) {
        return Err(io::Error::other("no room for a descriptor"));
    }
    sendmsg(to, &[IoSlice::new(&[MARK])], &mut ancillary, SendFlags::empty())?;
    Ok(())
}

/// Takes a descriptor; `None`: the other side ended without one.
pub(crate) fn receive_fd(from: &UnixStream) -> io::Result<Option<OwnedFd>> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut ancillary = RecvAncillaryBuffer::new(&mut space);
    let mut mark = [0];
    let got = recvmsg(from, &mut [IoSliceMut::new(&mut mark)], &mut ancillary, RecvFlags::CMSG_CLOEXEC)?;
    if got.bytes == 0 {
        return Ok(None);
    }
    let mut fds = ancillary.drain().filter_map(|message| match message {
        RecvAncillaryMessage::ScmRights(fds) => Some(fds),
        _ => None,
    });
    fds.next().and_then(|mut fds| fds.next()).map(Some).ok_or_else(|| io::Error::other("no descriptor came"))
}
