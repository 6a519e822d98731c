//! Where the adapter of a run comes from: it is a fresh one, or one that exists already.

use super::{
    Assistant, Observer, arguments::lora_config, assistant::ADAPTER_INDEX, default_cache_dir,
    results::model_name,
};
use crate::{
    Error, Result,
    checkpoint::{self, InputFile},
    recipe::{Recipe, TargetModules},
};
use ferrotune_kernels::RandomKey;
use ferrotune_lora::{
    Adapter, LoraConfig, inject, insert, load_adapter, load_config, module_infos, select_targets,
};
use ferrotune_models::import::hf_dir_for;
use std::{
    collections::BTreeSet,
    path::{Path, PathBuf},
};

/// Sees that the adapter of `lora.init_from` is one for this recipe and its base model, as far as can be seen without loading that. The hashes
/// of the inputs, where they had to be known.
///
/// # Errors
/// [`Error::OtherAdapter`] with every difference. Another base is none with `accept_changes`, unless its tensors have other shapes.
pub(super) fn check(
    recipe: &Recipe,
    accept_changes: bool,
    observer: &mut dyn Observer,
) -> Result<Vec<InputFile>> {
    let Some(path) = &recipe.lora.init_from else { return Ok(Vec::new()) };
    let config = load_config(path)?;
    let mut differences = Vec::new();
    for (key, ours, theirs) in [
        ("r", recipe.lora.r as f64, config.rank as f64),
        ("lora_alpha", recipe.lora.lora_alpha, config.lora_alpha),
    ] {
        if ours != theirs {
            differences.push(format!(
                "`lora.{key}` is {ours}, and the adapter has {theirs}: leave it out, or write {theirs}"
            ));
        }
    }
    let (inputs, other_base) = match saved_base(path)? {
        Some(saved) => {
            let inputs = InputFile::all(recipe, &saved)?;
            let other = other_content(&saved, &inputs);
            (inputs, other)
        }
        None => (Vec::new(), other_name(&config, recipe)?),
    };
    match other_base {
        Some(other) if accept_changes => observer.note(&format!("warning: accepted: {other}")),
        Some(other) => differences.push(format!(
            "{other}: name that base in `model.path`, or give --accept-changes if the weights are the same"
        )),
        None => {}
    }
    if !differences.is_empty() {
        return Err(Error::OtherAdapter { path: path.clone(), differences });
    }
    observer.note(&format!("starting from the adapter {}", path.display()));
    Ok(inputs)
}

/// The files of the base that a checkpoint was made with; `None` if the directory is that of an adapter alone.
fn saved_base(path: &Path) -> Result<Option<Vec<InputFile>>> {
    if !checkpoint::is_one(path) {
        return Ok(None);
    }
    let mut inputs = checkpoint::read(path)?.inputs;
    inputs.retain(|file| file.key == "model.path");
    Ok(Some(inputs))
}

/// The first file of weights that is not what a checkpoint was made with, in words.
fn other_content(saved: &[InputFile], inputs: &[InputFile]) -> Option<String> {
    let is_weights = |file: &&InputFile| {
        let extension = file.path.extension().and_then(|extension| extension.to_str());
        file.key == "model.path" && matches!(extension, Some("safetensors" | "gguf"))
    };
    let hashes = |files: &[InputFile]| -> BTreeSet<String> {
        files.iter().filter(is_weights).map(|file| file.sha256.clone()).collect()
    };
    let (theirs, ours) = (hashes(saved), hashes(inputs));
    let name = |files: &[InputFile], hash: &String| {
        let file = files.iter().find(|file| file.sha256 == *hash);
        let path = file.map_or_else(PathBuf::new, |file| file.path.clone());
        format!("{} with sha256 {}", path.display(), hash.get(..12).unwrap_or(hash))
    };
    let (their, our) = (theirs.difference(&ours).next(), ours.difference(&theirs).next());
    let side = |files: &[InputFile], hash: Option<&String>| {
        hash.map_or("no such file".to_owned(), |hash| name(files, hash))
    };
    (theirs != ours).then(|| {
        format!(
            "the adapter was trained on {}, and `model.path` has {}",
            side(saved, their),
            side(inputs, our)
        )
    })
}

/// Both names, if the adapter's base has another name than the recipe's.
fn other_name(config: &LoraConfig, recipe: &Recipe) -> Result<Option<String>> {
    let Some(theirs) = &config.base_model_name_or_path else { return Ok(None) };
    let ours = &recipe.model.path;
    // A .gguf file is imported under a name of its own.
    let directory = hf_dir_for(ours, &default_cache_dir())?;
    let is_same =
        [ours, &directory].into_iter().any(|path| model_name(path) == model_name(Path::new(theirs)));
    Ok((!is_same).then(|| {
        format!("the adapter was made for the base model {theirs}, and `model.path` is {}", ours.display())
    }))
}

/// Puts the adapter of the recipe into the model, ready to be trained.
///
/// # Errors
/// Those of [`inject`] and [`insert`]; [`Error::OtherAdapter`] if a given adapter has other modules than the recipe chooses.
pub(super) fn adapter(recipe: &Recipe, assistant: &mut Assistant) -> Result<Adapter> {
    let config = lora_config(recipe, &assistant.directory);
    let Some(path) = &recipe.lora.init_from else {
        let key = RandomKey::from_seed(recipe.seed).fold_name("lora");
        return Ok(inject(&mut assistant.model, "default", ADAPTER_INDEX, &config, key)?);
    };
    let mut file = load_adapter(path)?;
    check_modules(recipe, &file.config, file.tensors.keys().map(String::as_str).collect(), path, assistant)?;
    file.config.lora_dropout = config.lora_dropout;
    file.config.base_model_name_or_path = config.base_model_name_or_path;
    let inserted = insert(&mut assistant.model, "default", ADAPTER_INDEX, file, true);
    Ok(inserted
        .map_err(|source| ferrotune_lora::Error::InFile { path: path.clone(), source: source.into() })?)
}

/// Holds the modules of an adapter to those that the recipe chooses.
fn check_modules(
    recipe: &Recipe,
    config: &LoraConfig,
    theirs: BTreeSet<&str>,
    path: &Path,
    assistant: &mut Assistant,
) -> Result<()> {
    let target_modules = lora_config(recipe, &assistant.directory).target_modules;
    let modules = module_infos(&mut assistant.model)?;
    // Modules that the base does not have are another fault, and said when they are put into it.
    let theirs: BTreeSet<&str> =
        modules.iter().map(|module| module.path.as_str()).filter(|path| theirs.contains(path)).collect();
    let wanted = LoraConfig { target_modules, ..config.clone() };
    let selected = select_targets(&wanted, &modules)?;
    let ours: BTreeSet<&str> = selected.into_iter().map(|index| modules[index].path.as_str()).collect();
    let side = |count: usize, other: Option<&&str>| match other {
        Some(path) => format!("{count} layers, {path} among them"),
        None => format!("{count} layers"),
    };
    if theirs.is_empty() || ours == theirs {
        return Ok(());
    }
    let chosen = match &recipe.lora.target_modules {
        TargetModules::AllLinear => "\"all-linear\"".to_owned(),
        TargetModules::Named(names) => names.join(", "),
    };
    let difference = format!(
        "`lora.target_modules` ({chosen}) chooses {}, and the adapter has {}: leave it out",
        side(ours.len(), ours.difference(&theirs).next()),
        side(theirs.len(), theirs.difference(&ours).next())
    );
    Err(Error::OtherAdapter { path: path.to_owned(), differences: vec![difference] })
}

#[cfg(test)]
mod tests {
    use super::*;
    use ferrotune_lora::save_adapter;
    use tch::{Device, Kind, Tensor};

    struct Deaf;
    impl Observer for Deaf {}

    #[test]
    fn an_adapter_of_another_rank_and_alpha_is_refused_with_both_sides() {
        let folder = tempfile::tempdir().unwrap();
        let ones = |size: [i64; 2]| Tensor::ones(size, (Kind::Float, Device::Cpu));
        let config = LoraConfig { rank: 8, lora_alpha: 24.0, ..LoraConfig::default() };
        let path = folder.path().join("adapter");
        save_adapter(&path, &config, &[("q_proj", ones([8, 3]), ones([5, 8]))]).unwrap();
        let mut recipe = Recipe::new(folder.path().join("out"), folder.path(), "train.jsonl");
        recipe.lora.init_from = Some(path);
        (recipe.lora.r, recipe.lora.lora_alpha) = (4, 16.0);
        let error = check(&recipe, true, &mut Deaf).unwrap_err();
        let are_named = matches!(&error, Error::OtherAdapter { differences, .. } if differences.len() == 2
            && differences[0].contains("`lora.r` is 4, and the adapter has 8")
            && differences[1].contains("`lora.lora_alpha` is 16, and the adapter has 24"));
        assert!(are_named && error.is_bad_input(), "{error}");
        (recipe.lora.r, recipe.lora.lora_alpha) = (8, 24.0);
        check(&recipe, false, &mut Deaf).unwrap();
    }
}
