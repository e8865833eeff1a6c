"""The demo: photographs streamed through one small ring by many coroutines, drawn meanwhile, checked byte for byte.

| module | does |
| --- | --- |
| `options` | what the command line may say, and the error for what it may not |
| `gpu` | finding the adapter, opening the device, reading textures back |
| `photos` | finding image files, decoding them |
| `tiles` | cutting an image into tiles, putting it together again |
| `stream` | the coroutines that decode and upload |
| `mosaic` | laying the photographs out and drawing them |
| `observe` | watching what the ring and the event loop do meanwhile |
| `report` | saying it: live display, plain lines, closing statistics |
| `timeline` | the picture of the ring's buffers over time, from a trace |
| `verify` | comparing the texture with the files |
| `canvas` | the offscreen canvas or window that frames are drawn on |
| `app` | the run itself |
"""
