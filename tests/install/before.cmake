# A parent project before add_subdirectory: remembers all that after.cmake compares. Names that begin with parent_ are its
# own.
set(parent_directory_properties COMPILE_DEFINITIONS COMPILE_OPTIONS INCLUDE_DIRECTORIES LINK_DIRECTORIES LINK_LIBRARIES
    LINK_OPTIONS BUILDSYSTEM_TARGETS IMPORTED_TARGETS TESTS)

# parent_remember(WHEN): keeps variables, cache and the directory's properties, as parent_WHEN_...
macro(parent_remember when)
  get_cmake_property(parent_${when}_cache CACHE_VARIABLES)
  get_cmake_property(parent_${when}_names VARIABLES)
  # parent_... is compared to nothing; the others change with every command that runs.
  list(FILTER parent_${when}_names EXCLUDE REGEX "^(parent_.*|CMAKE_MATCH_.*|ARG[CNV0-9]*|CMAKE_CURRENT_LIST_.*)$")
  foreach(parent_name IN LISTS parent_${when}_names)
    set(parent_${when}_value_${parent_name} "${${parent_name}}")
  endforeach()
  foreach(parent_name IN LISTS parent_directory_properties)
    get_directory_property(parent_${when}_property_${parent_name} ${parent_name})
  endforeach()
endmacro()

parent_remember(before)
