//! What CLIP's two towers share (Radford et al. 2021, section 2.4): the layers of a transformer with
//! pre-normalisation, and keys of their configurations.

use crate::ops::Activation;
use crate::plan::{Tensor, Weights};
use crate::weights::config::Key;
use crate::weights::config::Literal::{Number, Text};

/// A tower's layers.
pub struct Transformer {
    pub layers: usize,
    pub heads: usize,
    /// Hidden width of the MLP.
    pub inner: usize,
    pub eps: f32,
    pub activation: Activation,
    /// Whether tokens attend to earlier tokens only.
    pub causal: bool,
}

/// Where a tower's tensors are and its projection's: transformers reads them with the tower's name in front, without it,
/// and with it more than once.
pub fn tower<'g>(w: &Weights<'g>, name: &str, probe: &str, projection: &str) -> [Weights<'g>; 2] {
    let twice = format!("{name}.{name}");
    [w.first_of(&[name, "", &twice], probe), w.first_of(&["", name], &format!("{projection}.weight")).at(projection)]
}

impl Transformer {
    /// All layers, below `w` as `encoder.layers.0` and so on.
    pub fn encode<'g>(&self, w: &Weights<'g>, x: Tensor<'g>) -> Tensor<'g> {
        let layers = w.at("encoder.layers");
        (0..self.layers).fold(x, |x, layer| self.block(&layers.at(layer), x))
    }

    /// Attention and MLP, each with a normalised input and a skip connection.
    fn block<'g>(&self, w: &Weights<'g>, x: Tensor<'g>) -> Tensor<'g> {
        let width = x.channels();
        let h = x.layer_norm(w.at("layer_norm1"), self.eps);
        let attn = w.at("self_attn");
        let [q, k, v] = ["q_proj", "k_proj", "v_proj"].map(|name| h.linear(attn.at(name), width));
        let x = x + q.attend((k, v), None, None, self.heads, self.causal).linear(attn.at("out_proj"), width);
        let h = x.layer_norm(w.at("layer_norm2"), self.eps);
        let h = h.linear(w.at("mlp.fc1"), self.inner).activate(self.activation);
        x + h.linear(w.at("mlp.fc2"), width)
    }
}

/// Keys that the configurations of both towers share.
pub const KEYS: &[Key] = &[
    Key::size("projection_dim").or(Number(512.0)),
    Key::size("num_hidden_layers").or(Number(12.0)),
    Key::float("layer_norm_eps").or(Number(1e-5)),
    Key::only("hidden_act", &[Text("quick_gelu"), Text("gelu")]),
    Key::no_effect("dropout attention_dropout initializer_range initializer_factor"),
    // Of every configuration of transformers: what the file is, how results are returned, other tasks.
    Key::no_effect("architectures model_type transformers_version torch_dtype dtype use_bfloat16"),
    Key::no_effect("return_dict output_hidden_states output_attentions output_scores return_dict_in_generate"),
    Key::no_effect("torchscript attn_implementation pruned_heads tie_word_embeddings chunk_size_feed_forward"),
    Key::no_effect("is_encoder_decoder is_decoder cross_attention_hidden_size add_cross_attention tie_encoder_decoder"),
    Key::no_effect("finetuning_task id2label label2id num_labels problem_type task_specific_params tf_legacy_loss"),
    Key::no_effect("tokenizer_class prefix bos_token_id pad_token_id sep_token_id decoder_start_token_id"),
    Key::no_effect("forced_bos_token_id forced_eos_token_id bad_words_ids suppress_tokens begin_suppress_tokens"),
    Key::no_effect("max_length min_length do_sample early_stopping num_beams num_beam_groups num_return_sequences"),
    Key::no_effect("temperature top_k top_p typical_p diversity_penalty repetition_penalty length_penalty"),
    Key::no_effect(
        "no_repeat_ngram_size encoder_no_repeat_ngram_size exponential_decay_length_penalty remove_invalid_values",
    ),
];

/// The MLP's activation by its name in `hidden_act`.
pub fn activation(name: &str) -> Activation {
    if name == "gelu" { Activation::Gelu } else { Activation::QuickGelu }
}
