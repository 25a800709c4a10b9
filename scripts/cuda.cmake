# The CUDA half of the kernels: static library s2o_cuda. Included when S2O_CUDA is ON.

include(CheckLanguage)
if(NOT CMAKE_CUDA_COMPILER AND NOT DEFINED ENV{CUDACXX})
  find_program(S2O_NVCC nvcc HINTS /usr/local/cuda/bin)
  if(S2O_NVCC)
    set(CMAKE_CUDA_COMPILER ${S2O_NVCC})
  endif()
endif()
check_language(CUDA)
if(NOT CMAKE_CUDA_COMPILER)
  message(FATAL_ERROR "S2O_CUDA=ON needs nvcc and none was found: put it on PATH, set CUDACXX, or "
                      "build without CUDA kernels (cmake --preset cpu)")
endif()
enable_language(CUDA)
# CMake 3.25 does not know CUDA20 and would fail at generate time.
if(NOT DEFINED CMAKE_CUDA20_STANDARD_COMPILE_OPTION)
  set(CMAKE_CUDA20_STANDARD_COMPILE_OPTION "-std=c++20")
  set(CMAKE_CUDA20_EXTENSION_COMPILE_OPTION "-std=c++20")
endif()
set(CMAKE_CUDA_STANDARD 20)
set(CMAKE_CUDA_STANDARD_REQUIRED ON)
set(CMAKE_CUDA_EXTENSIONS OFF)
set(CMAKE_CUDA_RUNTIME_LIBRARY Static)
set(CMAKE_SKIP_RPATH ON)
find_package(CUDAToolkit REQUIRED)
# cuBLAS is opened at run time; only its headers are needed here.
find_path(S2O_CUBLAS_HEADERS cublasLt.h HINTS ${CUDAToolkit_INCLUDE_DIRS})
if(NOT S2O_CUBLAS_HEADERS)
  message(FATAL_ERROR "S2O_CUDA=ON needs the headers of cuBLAS and found no cublasLt.h in "
                      "${CUDAToolkit_INCLUDE_DIRS}: install libcublas-dev of the toolkit's version")
endif()

# NCCL too is opened at run time. Without its header, models stay on one GPU.
find_path(S2O_NCCL_HEADERS nccl.h HINTS ${CUDAToolkit_INCLUDE_DIRS})
if(S2O_NCCL_HEADERS)
  set_source_files_properties(kernels/model/all_reduce_cuda.cpp PROPERTIES
    COMPILE_DEFINITIONS S2O_HAS_NCCL INCLUDE_DIRECTORIES ${S2O_NCCL_HEADERS})
  message(STATUS "NCCL: ${S2O_NCCL_HEADERS}/nccl.h")
else()
  message(STATUS "NCCL: no nccl.h (libnccl-dev); s2o prefill --parallel will say so")
endif()

file(GLOB_RECURSE S2O_CUDA_SOURCES CONFIGURE_DEPENDS kernels/*.cu)
list(FILTER S2O_CUDA_SOURCES EXCLUDE REGEX "/testing/")
set(S2O_CUDA_SM90_SOURCES ${S2O_CUDA_SOURCES})
list(FILTER S2O_CUDA_SM90_SOURCES INCLUDE REGEX "_sm90\\.cu$")
list(FILTER S2O_CUDA_SOURCES EXCLUDE REGEX "_sm90\\.cu$")

add_library(s2o_cuda_flags INTERFACE)
target_include_directories(s2o_cuda_flags INTERFACE ${CMAKE_SOURCE_DIR})
# A spill in a kernel is a bug here (see traits): the assembler reports it.
target_compile_options(s2o_cuda_flags INTERFACE
  $<$<COMPILE_LANGUAGE:CUDA>:-Xcompiler=-Wall,-Wextra,-Wshadow -Xptxas=-warn-spills,-Werror>)
option(S2O_PTXAS_VERBOSE "Print registers, shared memory and spills of every kernel" OFF)
if(S2O_PTXAS_VERBOSE)
  target_compile_options(s2o_cuda_flags INTERFACE $<$<COMPILE_LANGUAGE:CUDA>:-Xptxas=-v>)
endif()

# Hopper-only files: half the compile time, and other architectures reject their instructions.
add_library(s2o_cuda_sm90 OBJECT ${S2O_CUDA_SM90_SOURCES})
set_target_properties(s2o_cuda_sm90 PROPERTIES CUDA_ARCHITECTURES "90a-real")
target_link_libraries(s2o_cuda_sm90 PRIVATE s2o_cuda_flags CUDA::cudart_static)
add_library(s2o_cuda STATIC ${S2O_CUDA_SOURCES} $<TARGET_OBJECTS:s2o_cuda_sm90>)
target_link_libraries(s2o_cuda PRIVATE s2o_cuda_flags PUBLIC CUDA::cudart_static)
target_compile_definitions(s2o_flags INTERFACE S2O_HAS_CUDA)
message(STATUS "CUDA kernels: ${CMAKE_CUDA_COMPILER} ${CMAKE_CUDA_COMPILER_VERSION}, "
               "architectures ${CMAKE_CUDA_ARCHITECTURES}")
