/**
 * The network that an address is in: the first 24 bits of IPv4, the first 48 of IPv6 (one site, RFC 6177 §2). Undefined for
 * what is no address. With or without a port.
 */
export function networkOf(text: string): string | undefined {
  const v4 = /^(?:::ffff:)?(\d{1,3})\.(\d{1,3})\.(\d{1,3})\.\d{1,3}(?::\d{1,5})?$/i.exec(text);
  if (v4 !== null) {
    const parts = v4.slice(1, 4).map(Number);
    return parts.every((part) => part <= 255) ? `${parts.join('.')}.0/24` : undefined;
  }
  const v6 = /^(?:\[([0-9a-f:]{2,39})\](?::\d{1,5})?|([0-9a-f:]{2,39}))$/i.exec(text);
  const groups = v6 === null ? undefined : expanded((v6[1] ?? v6[2])!.toLowerCase());
  return groups === undefined ? undefined : `${groups.slice(0, 3).join(':')}::/48`;
}

function expanded(address: string): string[] | undefined {
  const [head = '', tail, more] = address.split('::');
  if (more !== undefined) return undefined;
  const [left, right] = [head, tail ?? ''].map((part) => (part === '' ? [] : part.split(':')));
  const missing = 8 - left!.length - right!.length;
  if (tail === undefined ? missing !== 0 : missing < 1) return undefined;
  const groups = [...left!, ...Array<string>(tail === undefined ? 0 : missing).fill('0'), ...right!];
  return groups.every((group) => /^[0-9a-f]{1,4}$/.test(group))
    ? groups.map((group) => parseInt(group, 16).toString(16))
    : undefined;
}
