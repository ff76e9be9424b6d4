//! The Python client against both servers: `client.py` says what it sees, and it has to see the same.

use crate::{World, clear};
use anyhow::{Result, ensure};
use moorline_e2e::{cache, process::text, root};
use std::process::Command;

fn trace(world: &World, access: [String; 2]) -> Result<String> {
    clear(&world.real)?;
    clear(&world.ours)?;
    let script = root().join("tests/e2e/tests/conformance/client.py");
    text(Command::new("python3").env("PYTHONPATH", cache().join("python")).arg(script).args(access))
}

pub fn check(world: &World) -> Result<()> {
    let kubeconfig = world.real.dir.join("kubeconfig").display().to_string();
    let real = trace(world, ["--kubeconfig".into(), kubeconfig])?;
    let ours = trace(world, ["--server".into(), format!("http://{}", world.ours.address)])?;
    println!(
        "| Python client | {} answers | {} |",
        ours.lines().count(),
        if real == ours { "same" } else { "DIFFERS" }
    );
    ensure!(real == ours, "real\n{real}\nours\n{ours}");
    ensure!(ours.lines().count() > 20, "{ours}");
    Ok(())
}
