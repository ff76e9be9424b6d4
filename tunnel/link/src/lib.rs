//! Sessions and streams over real carriers.
