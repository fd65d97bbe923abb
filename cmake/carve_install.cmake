# What does an installed carve consist of?  Headers, the libraries, the program,
# the license and the package files behind find_package(carve).
include(CMakePackageConfigHelpers)

include(GNUInstallDirs)

install(DIRECTORY ${PROJECT_SOURCE_DIR}/include/carve
        DESTINATION ${CMAKE_INSTALL_INCLUDEDIR})
install(FILES ${PROJECT_SOURCE_DIR}/LICENSE
        DESTINATION ${CMAKE_INSTALL_DATADIR}/licenses/carve)
if(TARGET carve_program)
  install(TARGETS carve_program)
endif()

# One export a library: whoever wants the headers needs no Boost and no CUDA.
set(carve_package_dir ${CMAKE_INSTALL_LIBDIR}/cmake/carve)
function(carve_export target set)
  if(TARGET ${target})
    install(TARGETS ${target} EXPORT ${set})
    install(
      EXPORT ${set}
      NAMESPACE carve::
      DESTINATION ${carve_package_dir})
  endif()
endfunction()
carve_export(carve_headers carveTargets)
carve_export(carve_reference carveReferenceTargets)
carve_export(carve_cuda carveCudaTargets)
carve_export(carve_shared carveCTargets)

configure_package_config_file(
  ${PROJECT_SOURCE_DIR}/cmake/carveConfig.cmake.in
  ${PROJECT_BINARY_DIR}/carveConfig.cmake
  INSTALL_DESTINATION ${carve_package_dir})
write_basic_package_version_file(${PROJECT_BINARY_DIR}/carveConfigVersion.cmake
                                 COMPATIBILITY SameMinorVersion)
install(FILES ${PROJECT_BINARY_DIR}/carveConfig.cmake
              ${PROJECT_BINARY_DIR}/carveConfigVersion.cmake
        DESTINATION ${carve_package_dir})
