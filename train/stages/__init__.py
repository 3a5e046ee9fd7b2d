"""The paper's stages: pretrain, sft, weak, mine, supervised."""
