#!/bin/sh
# Builds the Debian package from what `make install` puts below DESTDIR:
# build.sh ROOT VERSION OUT
set -eu
root=$1 version=$2 out=$3
here=$(dirname "$0")
# A Debian version begins with a digit.
case $version in [0-9]*) ;; *) version=0.0~$version ;; esac
version=$(printf %s "$version" | tr -c 'A-Za-z0-9.+~-' '+')
mkdir -p "$root/DEBIAN" "$root/usr/share/doc/penstock"
sed -e "s/@VERSION@/$version/" -e "s/@ARCH@/$(dpkg --print-architecture)/" -e "s/@SIZE@/$(du -sk "$root" | cut -f1)/" "$here/control" >"$root/DEBIAN/control"
(cd "$root" && find etc -type f | sort | sed 's#^#/#') >"$root/DEBIAN/conffiles"
for script in postinst prerm postrm; do
	install -m 0755 "$here/$script" "$root/DEBIAN/$script"
done
dpkg-deb --root-owner-group --build "$root" "$out" >/dev/null
echo "$out"
