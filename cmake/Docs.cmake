# deviceloop_docs: the documentation as one site, docs/html/index.html of the build folder, where Doxygen and Python are
# installed.
find_package(Doxygen QUIET)
find_package(Python3 COMPONENTS Interpreter QUIET)
if(NOT DOXYGEN_FOUND OR NOT Python3_FOUND)
  return()
endif()
configure_file(docs/Doxyfile.in "${PROJECT_BINARY_DIR}/docs/Doxyfile" @ONLY)
add_custom_target(deviceloop_docs
  COMMAND "${Python3_EXECUTABLE}" "${PROJECT_SOURCE_DIR}/docs/site" --doxygen $<TARGET_FILE:Doxygen::doxygen>
          --doxyfile "${PROJECT_BINARY_DIR}/docs/Doxyfile" --folder "${PROJECT_BINARY_DIR}/docs"
  COMMENT "Documentation: docs/html/index.html"
  VERBATIM)
