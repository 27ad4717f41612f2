"""SAM's parts, the TA-LoRA adapters and the multi-task model built of them; imports nothing but
`errors` and `sharding`, and may be imported by all."""
