//! What systemd hears of this process: ready, stopping, alive (sd_notify(3)). Without `NOTIFY_SOCKET` nothing is sent.

#[cfg(target_os = "linux")]
pub use linux::Notifier;
#[cfg(not(target_os = "linux"))]
pub use other::Notifier;

#[cfg(target_os = "linux")]
mod linux {
    use std::{
        env, io,
        os::{
            linux::net::SocketAddrExt,
            unix::net::{SocketAddr, UnixDatagram},
        },
        time::Duration,
    };

    /// The way to the service manager.
    pub struct Notifier(Option<UnixDatagram>);

    impl Notifier {
        /// As the environment says.
        pub fn from_environment() -> Self {
            let Some(name) = env::var_os("NOTIFY_SOCKET").and_then(|name| name.into_string().ok()) else {
                return Self(None);
            };
            let socket = connect(&name);
            if let Err(error) = &socket {
                tracing::warn!(cause = %error, "NOTIFY_SOCKET cannot be used; the service manager will not hear of this process");
            }
            Self(socket.ok())
        }

        /// It serves.
        pub fn ready(&self) {
            self.send("READY=1");
        }

        /// It ends.
        pub fn stopping(&self) {
            self.send("STOPPING=1");
        }

        /// Says forever that the runtime turns: twice in the time after which the service manager would end the process.
        pub async fn alive(&self) {
            let Some(limit) = watchdog(&|name| env::var(name).ok(), std::process::id()) else {
                return std::future::pending().await;
            };
            let mut tick = tokio::time::interval(limit / 2);
            loop {
                tick.tick().await;
                self.send("WATCHDOG=1");
            }
        }

        fn send(&self, state: &str) {
            // A service manager that does not listen is no trouble of ours.
            let _ = self.0.as_ref().map(|socket| socket.send(state.as_bytes()));
        }
    }

    fn connect(name: &str) -> io::Result<UnixDatagram> {
        let address = match name.strip_prefix('@') {
            Some(name) => SocketAddr::from_abstract_name(name)?,
            None => SocketAddr::from_pathname(name)?,
        };
        let socket = UnixDatagram::unbound()?;
        socket.connect_addr(&address)?;
        socket.set_nonblocking(true)?;
        Ok(socket)
    }

    /// The time of `WATCHDOG_USEC`, if it is meant for this process.
    fn watchdog(variable: &dyn Fn(&str) -> Option<String>, pid: u32) -> Option<Duration> {
        if variable("WATCHDOG_PID").is_some_and(|of| of != pid.to_string()) {
            return None;
        }
        let limit = Duration::from_micros(variable("WATCHDOG_USEC")?.parse().ok()?);
        (Duration::from_millis(1) < limit).then_some(limit)
    }

    #[cfg(test)]
    mod tests {
        use super::*;

        #[test]
        fn a_watchdog_is_obeyed_if_it_is_meant_for_this_process() {
            let with = |pid: &'static str, time: &'static str| {
                move |name: &str| match name {
                    "WATCHDOG_PID" => Some(pid.to_owned()),
                    _ => Some(time.to_owned()),
                }
            };
            assert_eq!(watchdog(&with("7", "30000000"), 7), Some(Duration::from_secs(30)));
            assert_eq!(watchdog(&with("8", "30000000"), 7), None);
            assert_eq!(watchdog(&with("7", "0"), 7), None);
            assert_eq!(watchdog(&|_| None, 7), None);
        }
    }
}

#[cfg(not(target_os = "linux"))]
mod other {
    /// Nobody to tell.
    pub struct Notifier;

    impl Notifier {
        /// Nothing.
        pub fn from_environment() -> Self {
            Self
        }
        /// Nothing.
        pub fn ready(&self) {}
        /// Nothing.
        pub fn stopping(&self) {}
        /// Nothing, forever.
        pub async fn alive(&self) {
            std::future::pending().await
        }
    }
}
