"""The paper's stages, one file each: pretrain and sft (language_model), weak, mine, supervised."""
