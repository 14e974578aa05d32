/* libcuda.so.1, simulated: the driver's calls on devices, contexts, memory, streams, events. For tests only.
 *
 * "Device" memory lies on the host, and pages that nobody writes cost nothing. All work is synchronous.
 * There is no code: loading or launching a kernel answers CUDA_ERROR_NOT_SUPPORTED. */
#include "machine.h"
#include <dlfcn.h>
#include <pthread.h>

typedef int Result;
typedef int Index; /* of a device among those that this process sees */
typedef void *Handle;
typedef unsigned long long Pointer; /* to device memory */
enum {
    SUCCESS = 0,
    INVALID_VALUE = 1,
    OUT_OF_MEMORY = 2,
    NOT_INITIALIZED = 3,
    NO_DEVICE = 100,
    INVALID_DEVICE = 101,
    INVALID_CONTEXT = 201,
    NOT_FOUND = 500,
    NOT_SUPPORTED = 801,
};

typedef struct {
    Index device;
    int users; /* of the primary context; 0 is no context */
} Context;

static struct {
    int card, instance;
    Context primary;
    uint64_t used; /* bytes */
    Handle pool;
} devices[MAX_CARDS];

static int n_devices;
static pid_t owner; /* process that called cuInit: a fork has no right to its devices */
static __thread Context *current;
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;

#define REQUIRE_INIT()                                                                             \
    do {                                                                                           \
        trace("cuda", __func__);                                                                   \
        if (owner != getpid()) return NOT_INITIALIZED;                                             \
    } while (0)

#define REQUIRE_DEVICE(device)                                                                     \
    do {                                                                                           \
        REQUIRE_INIT();                                                                            \
        if ((device) < 0 || (device) >= n_devices) return INVALID_DEVICE;                          \
    } while (0)

#define REQUIRE_CONTEXT()                                                                          \
    do {                                                                                           \
        REQUIRE_INIT();                                                                            \
        if (!current) return INVALID_CONTEXT;                                                      \
    } while (0)

/* Functions that have nothing to do, that answer one value, that are not simulated */
#define DOES_NOTHING(name, ...)                                                                    \
    API Result name(__VA_ARGS__) {                                                                 \
        REQUIRE_INIT();                                                                            \
        return SUCCESS;                                                                            \
    }

#define ANSWERS(name, type, value, ...)                                                            \
    API Result name(type *answer, ##__VA_ARGS__) {                                                 \
        REQUIRE_INIT();                                                                            \
        *answer = (value);                                                                         \
        return SUCCESS;                                                                            \
    }

#define UNSUPPORTED(name)                                                                          \
    API Result name(void) {                                                                        \
        trace("cuda", __func__);                                                                   \
        return NOT_SUPPORTED;                                                                      \
    }

/* ---- the driver ---- */

static int add_device(const char *word) {
    for (int card = 0; card < n_cards(); card++)
        for (int instance = n_instances() ? 0 : WHOLE_CARD; instance < n_instances(); instance++) {
            char uuid[96], *rest;
            write_uuid(card, instance, uuid, sizeof uuid);
            int by_number = strtol(word, &rest, 10) == card && rest != word && !*rest;
            if (!by_number && (strlen(word) <= 4 || strncmp(uuid, word, strlen(word)))) continue;
            devices[n_devices].card = card;
            devices[n_devices++].instance = instance;
            return 1;
        }
    return 0;
}

/* CUDA_VISIBLE_DEVICES holds numbers or (beginnings of) UUIDs. As for the real driver, a bad word ends it. */
static void find_devices(void) {
    const char *list = getenv("CUDA_VISIBLE_DEVICES");
    char word[128];
    for (int card = 0; !list && card < n_cards(); card++) {
        snprintf(word, sizeof word, "%d", card);
        add_device(word);
    }
    while (list && *list && n_devices < MAX_CARDS) {
        int length = (int)strcspn(list, ",");
        snprintf(word, sizeof word, "%.*s", length, list);
        if (!add_device(word)) return;
        list += length + (list[length] == ',');
    }
}

/* Let NVML know what this process holds of a device */
static void publish(Index device) {
    int has_context = devices[device].primary.users > 0;
    write_holder(devices[device].card, devices[device].instance, has_context, devices[device].used);
}

static void release_all(void) {
    for (Index device = 0; owner == getpid() && device < n_devices; device++) {
        devices[device].primary.users = 0;
        publish(device);
    }
}

API Result cuInit(unsigned flags) {
    trace("cuda", __func__);
    if (owner && owner != getpid()) return NOT_INITIALIZED;
    if (!owner) {
        find_devices();
        owner = getpid();
        atexit(release_all);
    }
    return n_devices ? SUCCESS : NO_DEVICE;
}

API Result cuDriverGetVersion(int *version) {
    *version = knob("GPUSIM_CUDA_VERSION", DRIVER_CUDA_VERSION);
    return SUCCESS;
}

API Result cuGetErrorName(Result error, const char **name) {
    switch (error) {
    case SUCCESS: *name = "CUDA_SUCCESS"; break;
    case INVALID_VALUE: *name = "CUDA_ERROR_INVALID_VALUE"; break;
    case OUT_OF_MEMORY: *name = "CUDA_ERROR_OUT_OF_MEMORY"; break;
    case NOT_INITIALIZED: *name = "CUDA_ERROR_NOT_INITIALIZED"; break;
    case NO_DEVICE: *name = "CUDA_ERROR_NO_DEVICE"; break;
    case INVALID_DEVICE: *name = "CUDA_ERROR_INVALID_DEVICE"; break;
    case INVALID_CONTEXT: *name = "CUDA_ERROR_INVALID_CONTEXT"; break;
    case NOT_FOUND: *name = "CUDA_ERROR_NOT_FOUND"; break;
    case NOT_SUPPORTED: *name = "CUDA_ERROR_NOT_SUPPORTED"; break;
    default: *name = "CUDA_ERROR_UNKNOWN";
    }
    return SUCCESS;
}

API Result cuGetErrorString(Result error, const char **text) {
    switch (error) {
    case SUCCESS: *text = "no error"; break;
    case OUT_OF_MEMORY: *text = "out of memory"; break;
    case NO_DEVICE: *text = "no CUDA-capable device is detected"; break;
    case NOT_SUPPORTED: *text = "operation not supported (the simulator runs no kernels)"; break;
    default: *text = "simulated driver error";
    }
    return SUCCESS;
}

/* ---- devices ---- */

ANSWERS(cuDeviceGetCount, int, n_devices)

API Result cuDeviceGet(Index *device, int ordinal) {
    REQUIRE_DEVICE(ordinal);
    *device = ordinal;
    return SUCCESS;
}

API Result cuDeviceGetName(char *name, int size, Index device) {
    REQUIRE_DEVICE(device);
    snprintf(name, size, "%s", card_name());
    return SUCCESS;
}

API Result cuDeviceTotalMem_v2(size_t *bytes, Index device) {
    REQUIRE_DEVICE(device);
    *bytes = memory_of(devices[device].instance);
    return SUCCESS;
}

API Result cuDeviceGetUuid_v2(unsigned char *bytes, Index device) {
    char uuid[96];
    REQUIRE_DEVICE(device);
    write_uuid(devices[device].card, devices[device].instance, uuid, sizeof uuid);
    for (char *digit = uuid + 4; *digit; digit += 2) { /* behind "GPU-" or "MIG-" */
        if (*digit == '-') digit++;
        sscanf(digit, "%2hhx", bytes++);
    }
    return SUCCESS;
}

API Result cuDeviceGetUuid(unsigned char *bytes, Index device) {
    return cuDeviceGetUuid_v2(bytes, device);
}

API Result cuDeviceGetPCIBusId(char *bus_id, int size, Index device) {
    REQUIRE_DEVICE(device);
    snprintf(bus_id, size, "0000:%02X:00.0", 0x10 + devices[device].card);
    return SUCCESS;
}

API Result cuDeviceComputeCapability(int *major, int *minor, Index device) {
    REQUIRE_DEVICE(device);
    *major = 9, *minor = 0;
    return SUCCESS;
}

/* CUdevice_attribute -> what a card of this size would say; any other attribute is 0 */
API Result cuDeviceGetAttribute(int *value, int attribute, Index device) {
    REQUIRE_DEVICE(device);
    switch (attribute) {
    case 1: case 2: case 3: *value = 1024; break;    /* threads a block, along x, y */
    case 4: *value = 64; break;                      /* ... and z */
    case 5: *value = 2147483647; break;              /* grid along x */
    case 6: case 7: *value = 65535; break;           /* ... y and z */
    case 8: *value = 49152; break;                   /* shared memory a block */
    case 10: *value = 32; break;                     /* warp */
    case 12: case 82: *value = 65536; break;         /* registers a block, a multiprocessor */
    case 13: *value = 1980000; break;                /* clock [kHz] */
    case 14: *value = 512; break;                    /* texture alignment */
    case 16: *value = 132; break;                    /* multiprocessors */
    case 31: case 41: case 78: *value = 1; break;    /* concurrent kernels, unified addresses, priorities */
    case 83: case 89: case 115: *value = 1; break;   /* managed memory, also at once from the host; pools */
    case 33: *value = 0x10 + devices[device].card; break;
    case 36: *value = 2619000; break;                /* memory clock [kHz] */
    case 37: *value = 5120; break;                   /* memory bus [bit] */
    case 38: *value = 52428800; break;               /* L2 cache */
    case 39: *value = 2048; break;                   /* threads a multiprocessor */
    case 40: *value = 3; break;                      /* copy engines */
    case 75: *value = 9; break;                      /* compute capability */
    case 81: *value = 233472; break;                 /* shared memory a multiprocessor */
    case 97: *value = 232448; break;                 /* ... a block that asks for more */
    default: *value = 0;
    }
    return SUCCESS;
}

API Result cuDeviceCanAccessPeer(int *can, Index one, Index other) {
    REQUIRE_DEVICE(one);
    REQUIRE_DEVICE(other);
    *can = one != other;
    return SUCCESS;
}

ANSWERS(cuDeviceGetP2PAttribute, int, 1, int attribute, Index one, Index other)

/* ---- contexts ---- */

static void count_users(Index device, int change) {
    pthread_mutex_lock(&lock);
    Context *primary = &devices[device].primary;
    primary->device = device;
    primary->users = primary->users + change > 0 ? primary->users + change : 0;
    publish(device);
    pthread_mutex_unlock(&lock);
}

API Result cuDevicePrimaryCtxRetain(Context **context, Index device) {
    REQUIRE_DEVICE(device);
    count_users(device, 1);
    *context = &devices[device].primary;
    return SUCCESS;
}

API Result cuDevicePrimaryCtxRelease_v2(Index device) {
    REQUIRE_DEVICE(device);
    count_users(device, -1);
    return SUCCESS;
}

API Result cuDevicePrimaryCtxGetState(Index device, unsigned *flags, int *active) {
    REQUIRE_DEVICE(device);
    *flags = 0, *active = devices[device].primary.users > 0;
    return SUCCESS;
}

API Result cuCtxSetCurrent(Context *context) {
    REQUIRE_INIT();
    current = context;
    return SUCCESS;
}

API Result cuCtxPushCurrent_v2(Context *context) {
    return cuCtxSetCurrent(context);
}

API Result cuCtxPopCurrent_v2(Context **context) {
    REQUIRE_INIT();
    if (context) *context = current;
    current = NULL;
    return SUCCESS;
}

API Result cuCtxGetDevice(Index *device) {
    REQUIRE_CONTEXT();
    *device = current->device;
    return SUCCESS;
}

API Result cuCtxGetDevice_v2(Index *device, Context *context) { /* of CUDA 13: any context */
    REQUIRE_INIT();
    if (!context && !current) return INVALID_CONTEXT;
    *device = (context ? context : current)->device;
    return SUCCESS;
}

API Result cuCtxGetId(Context *context, unsigned long long *id) {
    REQUIRE_INIT();
    if (!context && !current) return INVALID_CONTEXT;
    *id = 1 + (context ? context : current)->device;
    return SUCCESS;
}

API Result cuCtxGetStreamPriorityRange(int *least, int *most) {
    REQUIRE_CONTEXT();
    *least = 0, *most = -5;
    return SUCCESS;
}

API Result cuCtxGetApiVersion(Context *context, unsigned *version) {
    REQUIRE_INIT();
    *version = DRIVER_CUDA_VERSION;
    return SUCCESS;
}

ANSWERS(cuCtxGetCurrent, Context *, current)
ANSWERS(cuCtxGetFlags, unsigned, 0)
ANSWERS(cuCtxGetLimit, size_t, 0, int limit)
DOES_NOTHING(cuCtxSetLimit, int limit, size_t value)
DOES_NOTHING(cuCtxSynchronize, void)
DOES_NOTHING(cuCtxSynchronize_v2, Context *context)
DOES_NOTHING(cuCtxEnablePeerAccess, Context *peer, unsigned flags)
DOES_NOTHING(cuDevicePrimaryCtxSetFlags_v2, Index device, unsigned flags)
DOES_NOTHING(cuDevicePrimaryCtxReset_v2, Index device)

API Result cuDevicePrimaryCtxRelease(Index device) {
    return cuDevicePrimaryCtxRelease_v2(device);
}

/* ---- memory ---- */

enum kind { DEVICE, MANAGED, HOST };

static struct block {
    char *start;
    size_t size;
    Index device;
    enum kind kind;
    struct block *next;
} *blocks;

static Result allocate(Pointer *answer, size_t size, enum kind kind) {
    REQUIRE_CONTEXT();
    Index device = current->device;
    struct block *block = malloc(sizeof *block);
    void *start;
    if (!size || !block) return INVALID_VALUE;
    pthread_mutex_lock(&lock);
    int full = kind != HOST && devices[device].used + size > memory_of(devices[device].instance);
    if (full || posix_memalign(&start, 512, size)) {
        pthread_mutex_unlock(&lock);
        free(block);
        return OUT_OF_MEMORY;
    }
    *block = (struct block){start, size, device, kind, blocks};
    blocks = block;
    if (kind != HOST) devices[device].used += size;
    publish(device);
    pthread_mutex_unlock(&lock);
    *answer = (Pointer)(uintptr_t)start;
    return SUCCESS;
}

static struct block **find(Pointer pointer) { /* call with the lock held */
    struct block **link = &blocks;
    char *at = (char *)(uintptr_t)pointer;
    while (*link && !((*link)->start <= at && at < (*link)->start + (*link)->size)) link = &(*link)->next;
    return link;
}

static Result release(Pointer pointer) {
    REQUIRE_INIT();
    if (!pointer) return SUCCESS;
    pthread_mutex_lock(&lock);
    struct block **link = find(pointer), *block = *link;
    if (block && block->start != (char *)(uintptr_t)pointer) block = NULL; /* somewhere inside */
    if (block) {
        *link = block->next;
        if (block->kind != HOST) devices[block->device].used -= block->size;
        publish(block->device);
    }
    pthread_mutex_unlock(&lock);
    if (!block) return INVALID_VALUE;
    free(block->start);
    free(block);
    return SUCCESS;
}

/* A copy of what is known about the block that holds `pointer`; 0 if there is none */
static int describe(Pointer pointer, struct block *copy) {
    pthread_mutex_lock(&lock);
    struct block *block = *find(pointer);
    if (block) *copy = *block;
    pthread_mutex_unlock(&lock);
    return block != NULL;
}

API Result cuMemGetInfo_v2(size_t *unused, size_t *total) {
    REQUIRE_CONTEXT();
    *total = memory_of(devices[current->device].instance);
    *unused = *total - devices[current->device].used;
    return SUCCESS;
}

#define ALLOCATES(name, kind, ...)                                                                 \
    API Result name(Pointer *pointer, size_t size, ##__VA_ARGS__) {                                \
        return allocate(pointer, size, kind);                                                      \
    }

#define RELEASES(name, ...)                                                                        \
    API Result name(Pointer pointer, ##__VA_ARGS__) {                                              \
        return release(pointer);                                                                   \
    }

ALLOCATES(cuMemAlloc_v2, DEVICE)
ALLOCATES(cuMemAllocAsync, DEVICE, Handle stream)
ALLOCATES(cuMemAllocFromPoolAsync, DEVICE, Handle pool, Handle stream)
ALLOCATES(cuMemAllocManaged, MANAGED, unsigned flags)
ALLOCATES(cuMemAllocHost_v2, HOST)
ALLOCATES(cuMemHostAlloc, HOST, unsigned flags)
RELEASES(cuMemFree_v2)
RELEASES(cuMemFreeAsync, Handle stream)
RELEASES(cuMemFreeHost)
DOES_NOTHING(cuMemHostRegister_v2, Handle pointer, size_t size, unsigned flags)
DOES_NOTHING(cuMemHostUnregister, Handle pointer)
ANSWERS(cuMemHostGetDevicePointer_v2, Pointer, (Pointer)(uintptr_t)pointer, Handle pointer, unsigned flags)

#define COPIES(name, to, from, ...)                                                                \
    API Result name(to target, from source, size_t size, ##__VA_ARGS__) {                          \
        REQUIRE_CONTEXT();                                                                         \
        memmove((void *)(uintptr_t)target, (const void *)(uintptr_t)source, size);                 \
        return SUCCESS;                                                                            \
    }

COPIES(cuMemcpy, Pointer, Pointer)
COPIES(cuMemcpyAsync, Pointer, Pointer, Handle stream)
COPIES(cuMemcpyHtoD_v2, Pointer, Handle)
COPIES(cuMemcpyHtoDAsync_v2, Pointer, Handle, Handle stream)
COPIES(cuMemcpyDtoH_v2, Handle, Pointer)
COPIES(cuMemcpyDtoHAsync_v2, Handle, Pointer, Handle stream)
COPIES(cuMemcpyDtoD_v2, Pointer, Pointer)
COPIES(cuMemcpyDtoDAsync_v2, Pointer, Pointer, Handle stream)

#define FILLS(name, type, ...)                                                                     \
    API Result name(Pointer target, type value, size_t n, ##__VA_ARGS__) {                         \
        REQUIRE_CONTEXT();                                                                         \
        for (size_t i = 0; i < n; i++) ((type *)(uintptr_t)target)[i] = value;                     \
        return SUCCESS;                                                                            \
    }

FILLS(cuMemsetD8_v2, unsigned char)
FILLS(cuMemsetD8Async, unsigned char, Handle stream)
FILLS(cuMemsetD16_v2, unsigned short)
FILLS(cuMemsetD16Async, unsigned short, Handle stream)
FILLS(cuMemsetD32_v2, unsigned)
FILLS(cuMemsetD32Async, unsigned, Handle stream)

/* CUpointer_attribute */
enum {
    CONTEXT = 1,
    MEMORY_TYPE = 2,
    DEVICE_POINTER = 3,
    HOST_POINTER = 4,
    IS_MANAGED = 8,
    DEVICE_ORDINAL = 9,
    RANGE_START = 11,
    RANGE_SIZE = 12,
};

API Result cuPointerGetAttribute(void *answer, int attribute, Pointer pointer) {
    struct block block;
    REQUIRE_INIT();
    if (!describe(pointer, &block)) return INVALID_VALUE;
    switch (attribute) {
    case CONTEXT: *(Context **)answer = &devices[block.device].primary; break;
    case MEMORY_TYPE: *(unsigned *)answer = block.kind == HOST ? 1 : 2; break;
    case DEVICE_POINTER: *(Pointer *)answer = pointer; break;
    case HOST_POINTER: *(Handle *)answer = (Handle)(uintptr_t)pointer; break;
    case IS_MANAGED: *(unsigned *)answer = block.kind == MANAGED; break;
    case DEVICE_ORDINAL: *(int *)answer = block.device; break;
    case RANGE_START: *(Pointer *)answer = (Pointer)(uintptr_t)block.start; break;
    case RANGE_SIZE: *(size_t *)answer = block.size; break;
    default: return NOT_SUPPORTED;
    }
    return SUCCESS;
}

API Result cuPointerGetAttributes(unsigned n, int *attributes, void **answers, Pointer pointer) {
    struct block block;
    REQUIRE_INIT();
    int known = describe(pointer, &block);
    for (unsigned i = 0; i < n; i++) {
        if (known)
            cuPointerGetAttribute(answers[i], attributes[i], pointer);
        else if (attributes[i] == DEVICE_ORDINAL)
            *(int *)answers[i] = -2;
        else if (attributes[i] == MEMORY_TYPE || attributes[i] == IS_MANAGED)
            *(unsigned *)answers[i] = 0;
        else
            *(Handle *)answers[i] = NULL;
    }
    return SUCCESS;
}

API Result cuMemGetAddressRange_v2(Pointer *start, size_t *size, Pointer pointer) {
    struct block block;
    REQUIRE_INIT();
    if (!describe(pointer, &block)) return NOT_FOUND;
    if (start) *start = (Pointer)(uintptr_t)block.start;
    if (size) *size = block.size;
    return SUCCESS;
}

/* ---- pools, streams and events are names for work that is done already ---- */

static Handle new_token(void) {
    return calloc(1, 64);
}

API Result cuDeviceGetDefaultMemPool(Handle *pool, Index device) {
    REQUIRE_DEVICE(device);
    if (!devices[device].pool) devices[device].pool = new_token();
    *pool = devices[device].pool;
    return SUCCESS;
}

API Result cuDeviceGetMemPool(Handle *pool, Index device) {
    return cuDeviceGetDefaultMemPool(pool, device);
}

API Result cuMemPoolGetAttribute(Handle pool, int attribute, void *value) {
    REQUIRE_INIT();
    if (attribute <= 3)
        *(int *)value = 1; /* what may be reused */
    else
        *(uint64_t *)value = 0; /* bytes */
    return SUCCESS;
}

ANSWERS(cuMemPoolCreate, Handle, new_token(), const void *properties)
ANSWERS(cuMemPoolGetAccess, int, 3, Handle pool, void *location)
DOES_NOTHING(cuDeviceSetMemPool, Index device, Handle pool)
DOES_NOTHING(cuMemPoolDestroy, Handle pool)
DOES_NOTHING(cuMemPoolSetAttribute, Handle pool, int attribute, void *value)
DOES_NOTHING(cuMemPoolSetAccess, Handle pool, const void *descriptors, size_t n)
DOES_NOTHING(cuMemPoolTrimTo, Handle pool, size_t least)

API Result cuStreamCreate(Handle *stream, unsigned flags) {
    REQUIRE_CONTEXT();
    *stream = new_token();
    return SUCCESS;
}

API Result cuStreamCreateWithPriority(Handle *stream, unsigned flags, int priority) {
    return cuStreamCreate(stream, flags);
}

#define STREAM_ANSWERS(name, type, value)                                                          \
    API Result name(Handle stream, type *answer) {                                                 \
        REQUIRE_CONTEXT();                                                                         \
        *answer = (value);                                                                         \
        return SUCCESS;                                                                            \
    }

STREAM_ANSWERS(cuStreamGetFlags, unsigned, 0)
STREAM_ANSWERS(cuStreamGetPriority, int, 0)
STREAM_ANSWERS(cuStreamGetCtx, Context *, current)
STREAM_ANSWERS(cuStreamGetDevice, Index, current->device)
STREAM_ANSWERS(cuStreamGetId, unsigned long long, (uintptr_t)stream)
STREAM_ANSWERS(cuStreamIsCapturing, int, 0)
DOES_NOTHING(cuStreamDestroy_v2, Handle stream)
DOES_NOTHING(cuStreamSynchronize, Handle stream)
DOES_NOTHING(cuStreamQuery, Handle stream)
DOES_NOTHING(cuStreamWaitEvent, Handle stream, Handle event, unsigned flags)

typedef void Callback(Handle stream, Result status, void *data);

API Result cuStreamAddCallback(Handle stream, Callback *call, void *data, unsigned flags) {
    REQUIRE_CONTEXT();
    call(stream, SUCCESS, data);
    return SUCCESS;
}

API Result cuLaunchHostFunc(Handle stream, void (*call)(void *), void *data) {
    REQUIRE_CONTEXT();
    call(data);
    return SUCCESS;
}

ANSWERS(cuEventCreate, Handle, new_token(), unsigned flags)
ANSWERS(cuEventElapsedTime_v2, float, 0.001f, Handle start, Handle end)
ANSWERS(cuEventElapsedTime, float, 0.001f, Handle start, Handle end)
DOES_NOTHING(cuEventDestroy_v2, Handle event)
DOES_NOTHING(cuEventRecord, Handle event, Handle stream)
DOES_NOTHING(cuEventQuery, Handle event)
DOES_NOTHING(cuEventSynchronize, Handle event)

/* ---- not simulated: code, memory shared between processes, virtual addresses (UCX links to these) ---- */

UNSUPPORTED(cuModuleLoadData)
UNSUPPORTED(cuModuleLoadDataEx)
UNSUPPORTED(cuLibraryLoadData)
UNSUPPORTED(cuLaunchKernel)
UNSUPPORTED(cuIpcGetMemHandle)
UNSUPPORTED(cuIpcOpenMemHandle_v2)
UNSUPPORTED(cuIpcCloseMemHandle)
UNSUPPORTED(cuMemAddressReserve)
UNSUPPORTED(cuMemAddressFree)
UNSUPPORTED(cuMemCreate)
UNSUPPORTED(cuMemRelease)
UNSUPPORTED(cuMemMap)
UNSUPPORTED(cuMemUnmap)
UNSUPPORTED(cuMemSetAccess)
UNSUPPORTED(cuMemExportToShareableHandle)
UNSUPPORTED(cuMemImportFromShareableHandle)
UNSUPPORTED(cuMemGetAllocationGranularity)
UNSUPPORTED(cuMemGetAllocationPropertiesFromHandle)
UNSUPPORTED(cuMemRetainAllocationHandle)
UNSUPPORTED(cuMemRangeGetAttribute)
UNSUPPORTED(cuMemPoolExportPointer)
UNSUPPORTED(cuMemPoolImportPointer)
UNSUPPORTED(cuMemPoolExportToShareableHandle)
UNSUPPORTED(cuMemPoolImportFromShareableHandle)
UNSUPPORTED(cuPointerSetAttribute)

/* The runtime library (in cupy, RMM, cuDF) wants secret tables from here, so it finds no usable GPU */
API Result cuGetExportTable(const void **table, const unsigned char *uuid) {
    trace("cuda", __func__);
    *table = NULL;
    return NOT_FOUND;
}

/* ---- the entry that everything else is found through ---- */

API Result cuGetProcAddress_v2(
    const char *name, void **function, int version, unsigned long long flags, int *status
) {
    static const char *suffixes[] = {"_v4", "_v3", "_v2", ""}; /* the newest, unless the caller is older */
    static void *self;
    char full[160];
    Dl_info info;
    if (!self && dladdr((void *)&cuGetProcAddress_v2, &info))
        self = dlopen(info.dli_fname, RTLD_LAZY | RTLD_NOLOAD);
    int changed = !strcmp(name, "cuCtxGetDevice") || !strcmp(name, "cuCtxSynchronize"); /* in CUDA 13 */
    *function = NULL;
    for (int i = changed && version < 13000 ? 3 : 0; i < 4 && !*function; i++) {
        snprintf(full, sizeof full, "%s%s", name, suffixes[i]);
        *function = dlsym(self, full);
    }
    if (status) *status = *function ? 0 : 1;
    return *function ? SUCCESS : NOT_FOUND;
}

API Result cuGetProcAddress(const char *name, void **function, int version, unsigned long long flags) {
    return cuGetProcAddress_v2(name, function, version, flags, NULL);
}
