//! What an agent asks of Windows. On other systems there is nothing here.
//!
//! A crate of its own because Windows gives all of this by pointers and handles alone, which takes `unsafe` code: what
//! it offers is safe. [`Sandbox`] is the rights of one shell, [`Console`] its pseudo console (ConPTY) and the processes
//! within; [`private_folder`] makes folders that are their owner's alone, [`memory`] and [`disk`] say what is left.
#![cfg(windows)]
#![allow(unsafe_code)]

mod console;
mod files;
mod job;
mod sandbox;
mod space;
mod win;

pub use console::{Console, Program, Waiter, Window};
pub use files::private_folder;
pub use job::Bounds;
pub use sandbox::Sandbox;
pub use space::{disk, memory};
