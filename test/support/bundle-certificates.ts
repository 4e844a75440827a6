import { generateKeyPairSync, randomBytes, sign } from 'node:crypto';
import type { KeyObject } from 'node:crypto';
import { isIPv4 } from 'node:net';

/** Just enough of X.509 (RFC 5280) to have a server vouched for by an authority of one's own, without a tool or a package. */
export interface TestCa {
  /** PEM of the root. */
  certificate: string;
  /** A server certificate for DNS names and IPv4 addresses, and its key, both PEM. */
  issue(names: string[]): { cert: string; key: string };
}

export function createTestCa(rootName = 'Test root'): TestCa {
  const root = newKeys();
  const issue = (subject: string, key: KeyObject, extensions: Buffer[]) =>
    certificate({ issuer: rootName, subject, key, extensions, signer: root.privateKey });
  return {
    // basicConstraints CA, keyUsage keyCertSign (RFC 5280 §4.2.1.9, §4.2.1.3).
    certificate: issue(rootName, root.publicKey, [
      extension('2.5.29.19', der(0x30, der(0x01, [0xff])), true),
      extension('2.5.29.15', der(0x03, [2, 0x04]), true),
    ]),
    issue(names) {
      const leaf = newKeys();
      const general = names.map((name) =>
        isIPv4(name) ? der(0x87, name.split('.').map(Number)) : der(0x82, Buffer.from(name)),
      );
      return {
        cert: issue('Test server', leaf.publicKey, [extension('2.5.29.17', der(0x30, ...general))]),
        key: leaf.privateKey.export({ format: 'pem', type: 'pkcs8' }) as string,
      };
    },
  };
}

function newKeys() {
  return generateKeyPairSync('ec', { namedCurve: 'P-256' });
}

function certificate(of: {
  issuer: string;
  subject: string;
  key: KeyObject;
  extensions: Buffer[];
  signer: KeyObject;
}): string {
  const ecdsaWithSha256 = der(0x30, oid('1.2.840.10045.4.3.2'));
  const body = der(
    0x30,
    der(0xa0, der(0x02, [2])),
    der(0x02, [1, ...randomBytes(8)]),
    ecdsaWithSha256,
    commonName(of.issuer),
    der(0x30, time(Date.now() - 3_600_000), time(Date.now() + 86_400_000)),
    commonName(of.subject),
    of.key.export({ format: 'der', type: 'spki' }),
    der(0xa3, der(0x30, ...of.extensions)),
  );
  const signature = sign('sha256', body, of.signer);
  const whole = der(0x30, body, ecdsaWithSha256, der(0x03, [0], signature));
  const lines = whole.toString('base64').match(/.{1,64}/g)!;
  return ['-----BEGIN CERTIFICATE-----', ...lines, '-----END CERTIFICATE-----', ''].join('\n');
}

function commonName(name: string): Buffer {
  return der(0x30, der(0x31, der(0x30, oid('2.5.4.3'), der(0x0c, Buffer.from(name)))));
}

function extension(id: string, value: Buffer, critical = false): Buffer {
  return der(0x30, oid(id), ...(critical ? [der(0x01, [0xff])] : []), der(0x04, value));
}

/** UTCTime: YYMMDDhhmmssZ. */
function time(at: number): Buffer {
  const digits = new Date(at).toISOString().replace(/\D/g, '');
  return der(0x17, Buffer.from(`${digits.slice(2, 14)}Z`));
}

function oid(dotted: string): Buffer {
  const [first = 0, second = 0, ...rest] = dotted.split('.').map(Number);
  return der(0x06, [first * 40 + second, ...rest.flatMap(base128)]);
}

function base128(value: number): number[] {
  const bytes = [value & 0x7f];
  for (let left = value >> 7; left > 0; left >>= 7) bytes.unshift((left & 0x7f) | 0x80);
  return bytes;
}

function der(tag: number, ...parts: (Uint8Array | number[])[]): Buffer {
  const content = Buffer.concat(parts.map((part) => Buffer.from(part as Uint8Array)));
  const size = content.length;
  const length = size < 0x80 ? [size] : size < 0x100 ? [0x81, size] : [0x82, size >> 8, size & 0xff];
  return Buffer.concat([Buffer.from([tag, ...length]), content]);
}
