pub fn run() -> anyhow::Result<()> { Ok(()) }
pub fn link_data(_c: &std::path::Path) -> anyhow::Result<()> { Ok(()) }
