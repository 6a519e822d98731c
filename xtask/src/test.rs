pub mod spdx;
pub fn run() -> anyhow::Result<()> {
    Ok(())
}
