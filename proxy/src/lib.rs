//! The HTTP data plane: one request over one stream.
//!
//! The hub takes a request ([`guard`], [`path`], [`headers`]), asks for a stream ([`kube::Dial`]) and writes the request
//! into it ([`wire`]), as long as it keeps its [`pace`]; the agent reads it there, decides ([`edge`]) and sends it on. Every call is [`audit`]ed.
#![forbid(unsafe_code)]

pub mod audit;
pub mod body;
pub mod edge;
pub mod flows;
pub mod guard;
pub mod headers;
pub mod judge;
pub mod kube;
pub mod pace;
pub mod path;
pub mod splice;
pub mod status;
pub mod tape;
pub mod upgrade;
pub mod wire;

pub use body::{Body, BodyError};
