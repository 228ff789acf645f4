//! Configuration files: every key of the original classes is read, without effect, or legal with certain values only.

use crate::support::golden::{MODEL, Recording};
use serde_json::{Map, Value, json};
use std::fs;
use std::path::Path;
use unclip::diffusion::SchedulerConfig;
use unclip::model::{image_encoder, prior, text_encoder, text_proj, unet};
use unclip::preprocess::Preprocessor;
use unclip::weights::config::{self, Schema};
use unclip::weights::{Checkpoint, LoadOptions};

/// Reads one of the tiny checkpoint's files with some keys replaced: the warnings, or the error.
fn changed_config<T: Schema>(file: &str, change: Value) -> Result<Vec<String>, String> {
    let path = Path::new(MODEL).join(file);
    let mut config: Map<String, Value> = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
    config.extend(change.as_object().unwrap().clone());
    let text = serde_json::to_vec(&config).unwrap();
    config::read::<T>(&path, &text).map(|config| config.warnings().to_vec()).map_err(|e| e.to_string())
}

#[test]
fn every_key_of_the_shipped_checkpoints_is_known() {
    // The default model's files have all arguments of the classes of diffusers 0.42, tiny's those of 0.11.
    for model in ["tests/golden/tiny", "models/default"] {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join(model);
        let checkpoint = Checkpoint::open(folder, LoadOptions::default()).unwrap();
        fn warnings<T: Schema>(checkpoint: &Checkpoint, file: &str) -> Vec<String> {
            checkpoint.config::<T>(file).unwrap().warnings().to_vec()
        }
        let mut all = warnings::<text_encoder::Config>(&checkpoint, "text_encoder/config.json");
        all.extend(warnings::<image_encoder::Config>(&checkpoint, "image_encoder/config.json"));
        all.extend(warnings::<prior::Config>(&checkpoint, "prior/config.json"));
        all.extend(warnings::<text_proj::Config>(&checkpoint, "text_proj/config.json"));
        for unet in ["decoder", "super_res_first", "super_res_last"] {
            all.extend(warnings::<unet::Config>(&checkpoint, &format!("{unet}/config.json")));
        }
        for stage in ["prior", "decoder", "super_res"] {
            let file = format!("{stage}_scheduler/scheduler_config.json");
            all.extend(warnings::<SchedulerConfig>(&checkpoint, &file));
        }
        all.extend(warnings::<Preprocessor>(&checkpoint, "feature_extractor/preprocessor_config.json"));
        assert_eq!(all, [""; 0], "{model}");
    }
}

#[test]
fn keys_that_would_change_the_result_are_refused_with_file_key_and_values() {
    fn refused<T: Schema>(file: &str, change: Value) {
        let key = change.as_object().unwrap().keys().next().unwrap().clone();
        let error = changed_config::<T>(file, change).expect_err(&key);
        assert!(error.contains(&format!("{file}: {key} is ")), "{error}");
        assert!(error.contains("this engine knows ") || error.contains("expected "), "{error}");
    }
    for change in [
        json!({"time_embedding_act_fn": "gelu"}),
        json!({"timestep_post_act": "silu"}),
        json!({"mid_block_only_cross_attention": true}),
        json!({"time_embedding_type": "fourier"}),
        json!({"class_embed_type": "timestep"}),
        json!({"conv_in_kernel": 1}),
        json!({"resnet_out_scale_factor": 1.41}),
        json!({"encoder_hid_dim_type": "text_proj"}),
        json!({"addition_embed_type": "text"}),
        json!({"num_attention_heads": 8}),
        json!({"only_cross_attention": [false, true, false, false]}),
        json!({"attention_head_dim": [8, 8, 8, 0]}),
        json!({"cross_attention_dim": [40, 40, 40, 41]}),
        json!({"sample_size": [16, 32]}),
        json!({"attention_head_dim": 0}),
        json!({"norm_num_groups": null}),
        json!({"_class_name": "UNet3DConditionModel"}),
    ] {
        refused::<unet::Config>("decoder/config.json", change);
    }
    for change in [
        json!({"mid_block_type": null}),
        json!({"num_class_embeds": 5}),
        json!({"add_attention": true}),
        json!({"act_fn": "mish"}),
        json!({"layers_per_block": [1, 1, 1, 1]}),
    ] {
        refused::<unet::Config>("super_res_first/config.json", change);
    }
    for change in [
        json!({"norm_in_type": "layer"}),
        json!({"encoder_hid_proj_type": null}),
        json!({"added_emb_type": null}),
        json!({"additional_embeddings": 3}),
        json!({"time_embed_dim": 5}),
    ] {
        refused::<prior::Config>("prior/config.json", change);
    }
    refused::<text_encoder::Config>("text_encoder/config.json", json!({"hidden_act": "gelu_new"}));
    refused::<image_encoder::Config>("image_encoder/config.json", json!({"num_channels": 1}));
    refused::<text_proj::Config>("text_proj/config.json", json!({"time_embed_dim": "wide"}));
    for change in [json!({"size": {"longest_edge": 30}}), json!({"do_pad": true}), json!({"resample": 2})] {
        refused::<Preprocessor>("feature_extractor/preprocessor_config.json", change);
    }
    let types = json!({"down_block_types": ["ResnetDownsampleBlock2D", "AttnDownBlock2D", "A", "B"]});
    let error = changed_config::<unet::Config>("decoder/config.json", types).unwrap_err();
    assert!(error.contains("down_block_types has \"AttnDownBlock2D\"; this engine knows"), "{error}");
}

#[test]
fn keys_without_effect_and_configurations_inside_another_are_read() {
    let quiet = |found: Result<Vec<String>, String>| assert_eq!(found.unwrap(), [""; 0]);
    quiet(changed_config::<unet::Config>("decoder/config.json", json!({"dropout": 0.5, "upcast_attention": true})));
    quiet(changed_config::<unet::Config>("decoder/config.json", json!({"act_fn": "swish", "sample_size": null})));
    let lists = json!({"attention_head_dim": [8, 8, 8, 8], "layers_per_block": [1, 1, 1, 1], "sample_size": [16, 16],
        "only_cross_attention": [false, false, false, false], "cross_attention_dim": [40, 40, 40, 40]});
    quiet(changed_config::<unet::Config>("decoder/config.json", lists));
    quiet(changed_config::<unet::Config>("super_res_first/config.json", json!({"attention_head_dim": [8, null]})));
    let short = changed_config::<unet::Config>("decoder/config.json", json!({"attention_head_dim": [8, 8]}));
    assert!(short.unwrap_err().ends_with("attention_head_dim has 2 entries for 4 block_out_channels"));
    quiet(changed_config::<text_encoder::Config>("text_encoder/config.json", json!({"id2label": {"0": "A"}})));
    quiet(changed_config::<Preprocessor>("feature_extractor/preprocessor_config.json", json!({"size": 28})));
    let text = br#"{"model_type": "clip", "text_config": {"hidden_size": 24, "vocab_size": 99}, "vision_config": {}}"#;
    let nested = config::read::<text_encoder::Config>(Path::new("config.json"), text).unwrap();
    assert_eq!((nested.hidden_size, nested.vocab_size, nested.max_position_embeddings), (24, 99, 77));
    let unknown = changed_config::<unet::Config>("decoder/config.json", json!({"use_ema": true})).unwrap();
    assert!(unknown[0].ends_with("ignored keys that UNet2DConditionModel does not have: use_ema"), "{unknown:?}");
}

/// The lists come from diffusers 0.42.1 and transformers 5.23.
#[test]
fn every_key_of_the_original_classes_is_known() {
    fn known<T: Schema>(class: &str, file: &str, keys: &[String]) {
        assert!(keys.len() > 3, "{class}: {keys:?}");
        for key in keys {
            // Null is refused by name or passed over; only a key outside of the table is a warning.
            match changed_config::<T>(file, json!({key: null})) {
                Ok(warnings) => assert_eq!(warnings, [""; 0], "{class}"),
                Err(refusal) => assert!(refusal.contains(&format!("{key} is ")), "{class}: {refusal}"),
            }
        }
        let warned = changed_config::<T>(file, json!({"not_a_key": null})).unwrap();
        assert!(warned[0].ends_with(&format!("ignored keys that {class} does not have: not_a_key")), "{warned:?}");
    }
    let lists: std::collections::BTreeMap<String, Vec<String>> =
        serde_json::from_slice(&Recording::configurations().text("keys")).unwrap();
    for (class, keys) in &lists {
        match class.as_str() {
            "UNet2DConditionModel" => known::<unet::Config>(class, "decoder/config.json", keys),
            "UNet2DModel" => known::<unet::Config>(class, "super_res_first/config.json", keys),
            "PriorTransformer" => known::<prior::Config>(class, "prior/config.json", keys),
            "UnCLIPTextProjModel" => known::<text_proj::Config>(class, "text_proj/config.json", keys),
            "UnCLIPScheduler" => known::<SchedulerConfig>(class, "prior_scheduler/scheduler_config.json", keys),
            "CLIPTextConfig" => known::<text_encoder::Config>(class, "text_encoder/config.json", keys),
            "CLIPVisionConfig" => known::<image_encoder::Config>(class, "image_encoder/config.json", keys),
            "CLIPImageProcessor" => known::<Preprocessor>(class, "feature_extractor/preprocessor_config.json", keys),
            other => panic!("{other}"),
        }
    }
    assert_eq!(lists.len(), 8);
}
