// What the carrier needs of wgpu-native: a table of functions, which a test fills with its own, and the structs that they
// take. `layout.c` lists both, to be compared with the header that wgpu-py ships.
#pragma once
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

typedef void *gpu_handle;  // of any kind: buffer, texture, device, queue, encoder, command buffer

typedef struct {
    const char *data;
    size_t length;
} gpu_string;

typedef void (*gpu_mapped)(int32_t status, gpu_string message, void *userdata1, void *userdata2);
typedef void (*gpu_work_done)(void);  // (status, message, userdata1, userdata2); before wgpu 0.32 without the message

typedef struct {
    void *next;
    uint32_t mode;
    gpu_mapped callback;
    void *userdata1, *userdata2;
} gpu_map_info;

typedef struct {
    void *next;
    uint32_t mode;
    gpu_work_done callback;
    void *userdata1, *userdata2;
} gpu_work_done_info;

typedef struct {
    uint64_t offset;
    uint32_t bytes_per_row, rows_per_image;
} gpu_texel_layout;

typedef struct {
    gpu_texel_layout layout;
    gpu_handle buffer;
} gpu_texel_source;

typedef struct {
    uint32_t x, y, z;
} gpu_origin;

typedef struct {
    uint32_t width, height, depth;
} gpu_extent;

typedef struct {
    gpu_handle texture;
    uint32_t mip_level;
    gpu_origin origin;
    uint32_t aspect;
} gpu_texel_target;

enum { GPU_SUCCESS = 1, GPU_CALLBACK_ON_POLL = 2, GPU_ASPECT_ALL = 1, GPU_ASPECT_STENCIL = 2, GPU_ASPECT_DEPTH = 3 };
enum { GPU_MAP_READ = 1, GPU_MAP_WRITE = 2 };

typedef struct {
    gpu_handle (*create_encoder)(gpu_handle device, const void *descriptor);
    void (*copy_to_buffer)(gpu_handle encoder, gpu_handle from, uint64_t offset, gpu_handle to, uint64_t to_offset,
                           uint64_t size);
    void (*copy_to_texture)(gpu_handle encoder, const gpu_texel_source *, const gpu_texel_target *, const gpu_extent *);
    gpu_handle (*finish)(gpu_handle encoder, const void *descriptor);
    void (*release_encoder)(gpu_handle);
    void (*keep_commands)(gpu_handle);
    void (*release_commands)(gpu_handle);
    void (*keep_buffer)(gpu_handle);
    void (*release_buffer)(gpu_handle);
    void (*keep_texture)(gpu_handle);
    void (*release_texture)(gpu_handle);
    void (*submit)(gpu_handle queue, size_t count, const gpu_handle *commands);
    void (*unmap)(gpu_handle buffer);
    uint64_t (*map)(gpu_handle buffer, uint64_t mode, size_t offset, size_t size, gpu_map_info);
    void *(*address)(gpu_handle buffer, size_t offset, size_t size);
    const void *(*const_address)(gpu_handle buffer, size_t offset, size_t size);
    uint32_t (*poll)(gpu_handle device, uint32_t wait, const void *submission);
    uint64_t (*on_work_done)(gpu_handle queue, gpu_work_done_info);
    void (*write_buffer)(gpu_handle queue, gpu_handle buffer, uint64_t offset, const void *data, size_t size);
    void (*write_texture)(gpu_handle queue, const gpu_texel_target *, const void *data, size_t size,
                          const gpu_texel_layout *, const gpu_extent *);
} gpu_functions;

typedef struct {
    const char *name;  // wgpu-native's
    size_t offset;     // in gpu_functions
    const char *type;  // as cffi has it from webgpu.h
} gpu_function_name;

typedef struct {
    const char *name;   // "Struct", "Struct.field" or "Enum_Value", as webgpu.h has them
    size_t offset;      // of a field; the size of a struct; the value of an enum
    size_t size;        // of a field
} gpu_layout;

extern const gpu_function_name gpu_function_names[];  // ends with a NULL name
extern const gpu_layout gpu_layouts[];
