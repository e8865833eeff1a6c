// Threads, locks and a clock, on POSIX and on Windows.
#pragma once
#include <stdbool.h>
#include <stdint.h>

#ifdef _WIN32
#define WIN32_LEAN_AND_MEAN
#include <windows.h>

typedef SRWLOCK mutex;
typedef CONDITION_VARIABLE condition;
#define THREAD_RESULT DWORD WINAPI
typedef DWORD(WINAPI *thread_main)(void *);

static inline void mutex_make(mutex *m) { InitializeSRWLock(m); }
static inline void mutex_end(mutex *m) { (void)m; }
static inline void mutex_lock(mutex *m) { AcquireSRWLockExclusive(m); }
static inline void mutex_unlock(mutex *m) { ReleaseSRWLockExclusive(m); }
static inline void condition_make(condition *c) { InitializeConditionVariable(c); }
static inline void condition_end(condition *c) { (void)c; }
static inline void condition_wait(condition *c, mutex *m) { SleepConditionVariableSRW(c, m, INFINITE, 0); }
static inline void condition_wake(condition *c) { WakeConditionVariable(c); }
static inline void condition_wake_all(condition *c) { WakeAllConditionVariable(c); }
static inline bool thread_start(thread_main run, void *with) {
    HANDLE t = CreateThread(NULL, 0, run, with, 0, NULL);
    if (t) CloseHandle(t);
    return t != NULL;
}
static inline double now(void) {
    LARGE_INTEGER count, frequency;
    QueryPerformanceFrequency(&frequency);
    QueryPerformanceCounter(&count);
    return (double)count.QuadPart / (double)frequency.QuadPart;
}
static inline void condition_wait_for(condition *c, mutex *m, double seconds) {
    SleepConditionVariableSRW(c, m, (DWORD)(seconds * 1e3 + 0.999), 0);
}

#else
#include <pthread.h>
#include <time.h>

typedef pthread_mutex_t mutex;
typedef pthread_cond_t condition;
#define THREAD_RESULT void *
typedef void *(*thread_main)(void *);

static inline void mutex_make(mutex *m) { pthread_mutex_init(m, NULL); }
static inline void mutex_end(mutex *m) { pthread_mutex_destroy(m); }
static inline void mutex_lock(mutex *m) { pthread_mutex_lock(m); }
static inline void mutex_unlock(mutex *m) { pthread_mutex_unlock(m); }
static inline void condition_make(condition *c) {
#ifdef __APPLE__
    pthread_cond_init(c, NULL);
#else
    pthread_condattr_t attributes;
    pthread_condattr_init(&attributes);
    pthread_condattr_setclock(&attributes, CLOCK_MONOTONIC);
    pthread_cond_init(c, &attributes);
    pthread_condattr_destroy(&attributes);
#endif
}
static inline void condition_end(condition *c) { pthread_cond_destroy(c); }
static inline void condition_wait(condition *c, mutex *m) { pthread_cond_wait(c, m); }
static inline void condition_wake(condition *c) { pthread_cond_signal(c); }
static inline void condition_wake_all(condition *c) { pthread_cond_broadcast(c); }
static inline bool thread_start(thread_main run, void *with) {
    pthread_t t;
    return pthread_create(&t, NULL, run, with) == 0 && pthread_detach(t) == 0;
}
static inline double now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + (double)t.tv_nsec * 1e-9;
}
static inline void condition_wait_for(condition *c, mutex *m, double seconds) {
    int64_t nanoseconds = (int64_t)(seconds * 1e9);
    struct timespec t;
#ifdef __APPLE__
    t.tv_sec = nanoseconds / 1000000000;
    t.tv_nsec = nanoseconds % 1000000000;
    pthread_cond_timedwait_relative_np(c, m, &t);
#else
    clock_gettime(CLOCK_MONOTONIC, &t);
    nanoseconds += t.tv_nsec;
    t.tv_sec += nanoseconds / 1000000000;
    t.tv_nsec = nanoseconds % 1000000000;
    pthread_cond_timedwait(c, m, &t);
#endif
}
#endif
