import path from 'node:path';
import { describe, expect, test } from 'vitest';
import { loadConfig } from '../../src/config/load-config.ts';
import { complaints, load, minimal, temporaryFolder, write } from './support.ts';

describe('a configuration that is right', () => {
  test('needs only broker, attestation and policy; everything else has a default', () => {
    const config = load(minimal);
    expect(config.server).toEqual({
      grpc: { host: '127.0.0.1', port: 7443, tls: undefined, allowPlaintext: false },
      http: { host: '127.0.0.1', port: 7080, tls: undefined, allowPlaintext: false, corsOrigins: [] },
      limits: {
        maxMessageBytes: 262_144,
        callsPerSecond: 500,
        burst: 1000,
        maxStreams: 64,
        maxDeadline: 60_000,
        defaultDeadline: 15_000,
      },
      shutdownGrace: 20_000,
    });
    expect(config.database).toBeUndefined();
    expect(config.keys).toEqual({
      sealingKey: undefined,
      previousSealingKeys: [],
      rotateEvery: 30 * 86_400_000,
      publishAhead: 3_600_000,
      algorithm: 'ES256',
    });
    expect(config.attestation.clockSkew).toBe(30_000);
    expect(config.attestation.trustDomains[0]).toMatchObject({
      name: 'acme.test',
      tenant: 'default',
      audiences: ['leasehold'],
      maxTokenLifetime: 3_600_000,
      staleAfter: 3_600_000,
    });
    expect(config.tasks).toEqual({
      defaultTtl: 3_600_000,
      maxTtl: 86_400_000,
      settleBound: 30_000,
      renewalOverlap: 30_000,
    });
    expect(config.targets).toEqual({});
    expect(config.tenants).toMatchObject([{ name: 'default', access: [], targets: [] }]);
    expect(config.log).toEqual({ level: 'info', format: 'json' });
  });

  test('resolves relative paths against its own folder, and leaves absolute ones', () => {
    const file = write(
      minimal + 'server: { grpc: { listen: 0.0.0.0:1, tls: { certFile: tls/cert.pem, keyFile: /etc/key.pem } } }',
    );
    const config = loadConfig({ path: file, env: {} });
    const folder = path.dirname(file);
    expect(config.tenants[0]!.policy).toEqual({ source: 'directory', directory: path.join(folder, 'policy') });
    expect(config.attestation.trustDomains[0]!.bundle).toEqual({ file: path.join(folder, 'bundle.json') });
    expect(config.server.grpc.tls).toEqual({
      certFile: path.join(folder, 'tls/cert.pem'),
      keyFile: '/etc/key.pem',
      requestClientCertificate: false,
    });
  });

  test('takes combined durations, IPv6 addresses and per-source overrides', () => {
    const config = load(`apiVersion: leasehold.dev/v1
kind: Config
broker: { issuer: "http://[::1]:7080" }
server: { http: { listen: "[::1]:0" }, shutdownGrace: 1m30s }
attestation:
  audiences: [a]
  maxTokenLifetime: 2h
  oidc:
    - issuer: https://token.ci.test
      audiences: [b]
      maxTokenLifetime: 10m
      requiredClaims: { repository_owner: acme, protected: true, environment: [prod, 7] }
      workload: spiffe://acme.test/ci/{repository_id}
policy: { directory: /p }
`);
    expect(config.server.http).toMatchObject({ host: '::1', port: 0 });
    expect(config.server.shutdownGrace).toBe(90_000);
    expect(config.attestation.oidc[0]).toMatchObject({
      tenant: 'default',
      audiences: ['b'],
      maxTokenLifetime: 600_000,
      requiredClaims: { repository_owner: ['acme'], protected: ['true'], environment: ['prod', '7'] },
      jwksUri: undefined,
    });
  });

  test('tells agents the target’s own address unless another is given', () => {
    const target = 'kind: postgres, host: db.internal, database: d, user: u, passwordEnv: P';
    const config = load(
      `${minimal}targets: { a: { ${target} }, b: { ${target}, connectHost: db.test, connectPort: 6 } }`,
    );
    expect(config.targets['a']).toMatchObject({
      port: 5432,
      sslmode: 'verify-full',
      poolSize: 8,
      issueTimeout: 10_000,
      connect: { host: 'db.internal', port: 5432 },
    });
    expect(config.targets['b']!.connect).toEqual({ host: 'db.test', port: 6 });
  });

  test('is frozen all the way down', () => {
    const config = load(minimal);
    expect(() => Object.assign(config.server.limits, { burst: 1 })).toThrow(TypeError);
    expect(() => (config.attestation.trustDomains as unknown[]).push(1)).toThrow(TypeError);
  });
});

/** One mistake each: what is added to a right configuration, and every complaint about it. */
const mistakes: [what: string, text: string, complaints: string[]][] = [
  [
    'an unknown section that is nearly a known one',
    'lgo: { level: info }',
    ['6:1: lgo: unknown field "lgo"; did you mean "log"?'],
  ],
  [
    'an unknown field that is like none',
    'log: { colour: red }',
    ['6:8: log.colour: unknown field "colour"; fields: level, format'],
  ],
  [
    'a wrong type',
    'database: { urlEnv: DB, poolSize: ten }',
    ['6:35: database.poolSize: must be a whole number, not a string; it means: connections that this broker may hold'],
  ],
  ['a list instead of a map', 'log: [info]', ['6:1: log: must be a map of fields, not a list; it means: the log']],
  ['an empty section', 'log:', ['6:1: log: must be a map of fields, not empty; it means: the log']],
  [
    'a bad duration',
    'tasks: { settleBound: 5 minutes }',
    ['6:23: tasks.settleBound: "5 minutes" is not a duration; write it like 30s, 10m, 1h30m or 7d'],
  ],
  [
    'a duration out of bounds',
    'tasks: { maxTtl: 31d }',
    ['6:18: tasks.maxTtl: 31d is outside 1s to 30d; it means: longest life of a task'],
  ],
  [
    'a number out of bounds',
    'server: { limits: { maxMessageBytes: 1 } }',
    ['6:38: server.limits.maxMessageBytes: must be at least 1024; it means: largest request, in bytes'],
  ],
  [
    'a number above its bound',
    'database: { urlEnv: DB, poolSize: 501 }',
    ['6:35: database.poolSize: must be at most 500; it means: connections that this broker may hold'],
  ],
  [
    'a password in the file',
    'targets: { w: { kind: postgres, host: h, database: d, user: u, passwordEnv: P, password: hunter2 } }',
    ['6:80: targets.w.password: a secret may not be written in this file; use passwordFile or passwordEnv'],
  ],
  [
    'a password in the database URL',
    'database: { url: "postgres://leasehold:hunter2@db/leasehold" }',
    ['6:18: database.url: has a password in it; use urlFile or urlEnv; a secret may not be written in this file'],
  ],
  [
    'a password in the parameters of the database URL',
    'database: { url: "postgres://db/leasehold?password=hunter2" }',
    ['6:18: database.url: has a password in it; use urlFile or urlEnv; a secret may not be written in this file'],
  ],
  [
    'a database URL of something else',
    'database: { url: "mysql://db/leasehold" }',
    ['6:18: database.url: is not a PostgreSQL URL; write it like postgres://leasehold@db.acme.test/leasehold'],
  ],
  [
    'the sealing key itself',
    'keys: { sealingKey: hunter2 }',
    ['6:9: keys.sealingKey: a secret may not be written in this file; use sealingKeyFile or sealingKeyEnv'],
  ],
  [
    'two sources of one secret',
    'keys: { sealingKeyFile: a, sealingKeyEnv: B }',
    ['6:43: keys.sealingKeyEnv: is given together with sealingKeyFile; keep one of them'],
  ],
  [
    'something that cannot be an environment variable',
    'database: { urlEnv: "postgres://u:hunter2@db" }',
    [
      '6:21: database.urlEnv: must be the name of an environment variable; the secret itself stays outside of this file',
    ],
  ],
  [
    'no source of a secret',
    'database: { poolSize: 3 }',
    ['6:1: database: needs exactly one of url, urlFile, urlEnv; say one of them, and only one'],
  ],
  [
    'plaintext beyond loopback',
    'server: { grpc: { listen: 0.0.0.0:7443 } }',
    [
      '6:27: server.grpc.listen: would serve without TLS on an address that others can reach; add tls, listen on 127.0.0.1, or say allowPlaintext: true if something in front does TLS',
    ],
  ],
  [
    'plaintext of the HTTP door beyond loopback',
    'server: { http: { listen: "broker.acme.test:7080" } }',
    [
      '6:27: server.http.listen: would serve without TLS on an address that others can reach; add tls, listen on 127.0.0.1, or say allowPlaintext: true if something in front does TLS',
    ],
  ],
  [
    'an address without a port',
    'server: { grpc: { listen: 127.0.0.1 } }',
    ['6:27: server.grpc.listen: must be an address and a port; write it like 127.0.0.1:7443 or [::1]:7443'],
  ],
  [
    'a port that there is not',
    'server: { grpc: { listen: 127.0.0.1:70000 } }',
    ['6:27: server.grpc.listen: has a port above 65535'],
  ],
  [
    'one address for two doors',
    'server: { grpc: { listen: 127.0.0.1:7080 } }',
    ['6:1: server.http.listen: is the address of server.grpc too; give each door a port of its own'],
  ],
  [
    'a certificate without its key',
    'server: { http: { tls: { certFile: c } } }',
    ['6:19: server.http.tls: "keyFile" is missing; add keyFile: PEM file with the private key'],
  ],
  [
    'a page’s address instead of an origin',
    'server: { http: { corsOrigins: [https://console.acme.test/] } }',
    ['6:33: server.http.corsOrigins[0]: is not an origin; write it like https://console.acme.test'],
  ],
  [
    'a default deadline above the maximum',
    'server: { limits: { defaultDeadline: 90s } }',
    ['6:38: server.limits.defaultDeadline: is longer than maxDeadline (90s > 60s)'],
  ],
  [
    'a burst below the rate',
    'server: { limits: { burst: 10 } }',
    ['6:28: server.limits.burst: is smaller than callsPerSecond, which could then never be reached'],
  ],
  [
    'a key published for longer than it signs',
    'keys: { rotateEvery: 1h, publishAhead: 2h }',
    ['6:40: keys.publishAhead: is longer than rotateEvery (2h > 1h)'],
  ],
  [
    'another algorithm',
    'keys: { algorithm: HS256 }',
    ['6:20: keys.algorithm: must be one of ES256; did you mean "ES256"?'],
  ],
  [
    'a default life above the maximum',
    'tasks: { defaultTtl: 48h }',
    ['6:22: tasks.defaultTtl: is longer than maxTtl (48h > 24h)'],
  ],
  [
    'a misspelt role',
    'access: [{ workloads: ["spiffe://acme.test/o"], roles: [orchestratr] }]',
    [
      '6:57: access[0].roles[0]: must be one of orchestrator, resource_server, operator, auditor, approver, signal_source; did you mean "orchestrator"?',
    ],
  ],
  [
    'the agent role, which policy gives',
    'access: [{ workloads: ["spiffe://acme.test/o"], roles: [agent] }]',
    [
      '6:57: access[0].roles[0]: must be one of orchestrator, resource_server, operator, auditor, approver, signal_source; take one of these',
    ],
  ],
  [
    'a role twice',
    'access: [{ workloads: ["spiffe://acme.test/o"], roles: [operator, operator] }]',
    ['6:67: access[0].roles[1]: stands in this list twice; remove one of the two'],
  ],
  [
    'a pattern that covers part of a segment',
    'access: [{ workloads: ["spiffe://acme.test/orc*"], roles: [operator] }]',
    [
      '6:24: access[0].workloads[0]: "spiffe://acme.test/orc*" is not a workload or a pattern of workloads; write spiffe://<trust domain>/<path>, or end it in /* to cover everything below',
    ],
  ],
  [
    'a workload of a trust domain that is not configured',
    'access: [{ workloads: ["spiffe://acme.tset/o"], roles: [operator] }]',
    [
      '6:24: access[0].workloads[0]: no trust domain "acme.tset" is configured; add it to the configuration\'s attestation, or use one of: acme.test',
    ],
  ],
  [
    'a workload without a scheme where no issuer gives one',
    'access: [{ workloads: [ci/x], roles: [operator] }]',
    [
      "6:24: access[0].workloads[0]: no OIDC issuer gives workloads without a scheme; add it to the configuration's attestation, or use one of: acme.test",
    ],
  ],
  [
    'an empty list',
    'access: [{ workloads: [], roles: [operator] }]',
    ['6:12: access[0].workloads: must have at least 1 entry; name what it needs'],
  ],
  [
    'a group of a trust domain that is not configured',
    'approvals: { groups: { security: ["spiffe://acme.tset/o"] } }',
    [
      '6:35: approvals.groups.security[0]: no trust domain "acme.tset" is configured; add it to the configuration\'s attestation, or use one of: acme.test',
    ],
  ],
  [
    'a webhook over plain http to another machine',
    'approvals: { webhooks: [{ name: chat, url: "http://chat.acme.test/", secretEnv: S }] }',
    ['6:44: approvals.webhooks[0].url: is not an https URL; http is allowed on loopback only'],
  ],
  [
    'a webhook of a tenant that stands twice',
    'tenants: { acme: { policy: { source: database }, webhooks: [{ name: chat, url: "https://chat.acme.test/", secretEnv: S }, { name: chat, url: "https://chat.acme.test/", secretEnv: S }] } }',
    ['6:131: tenants.acme.webhooks[1].name: "chat" is configured twice'],
  ],
  [
    'bounds of a tenant that cannot be reached',
    'tenants: { acme: { policy: { source: database }, limits: { callsPerSecond: 5000 } } }',
    ['6:76: tenants.acme.limits.callsPerSecond: is larger than burst (4000), and could then never be reached'],
  ],
  [
    'a webhook without a secret, and one whose secret stands in the file',
    'approvals: { webhooks: [{ name: chat, url: "https://chat.acme.test/" }] }',
    ['6:25: approvals.webhooks[0]: needs exactly one of secretFile, secretEnv; say one of them, and only one'],
  ],
  [
    'a target that cannot be named',
    'targets: { Ware_house: { kind: postgres, host: h, database: d, user: u, passwordEnv: P } }',
    [
      '6:12: targets.Ware_house: "Ware_house" is not a name: a lower-case letter, then at most 62 of a-z, 0-9 and "-"; rename it',
    ],
  ],
  [
    'an unknown kind of target',
    'targets: { w: { kind: postgress, host: h, database: d, user: u, passwordEnv: P } }',
    ['6:23: targets.w.kind: must be one of postgres; did you mean "postgres"?'],
  ],
  [
    'a CA that nothing uses',
    'targets: { w: { kind: postgres, host: h, database: d, user: u, passwordEnv: P, sslmode: disable, caFile: c } }',
    ['6:106: targets.w.caFile: has no effect with sslmode disable; use sslmode verify-full'],
  ],
  [
    'an empty text',
    'database: { urlFile: "" }',
    ['6:22: database.urlFile: must not be empty; fill it in, or leave it out'],
  ],
  ['a key twice', 'log: {}\nlog: {}', ['7:1: not valid YAML: map keys must be unique; remove one of the two']],
  [
    'YAML that is none',
    'log: level: info',
    [
      '6:6: not valid YAML: nested mappings are not allowed in compact mappings; look at the quotes, brackets and indentation there',
    ],
  ],
  [
    'a tag',
    'log: !!js/function "f"',
    ['6:6: not valid YAML: unresolved tag: tag:yaml.org,2002:js/function; leave the tag (!…) out'],
  ],
  ['a second document', '---\nkind: Config', ['7:1: holds a second document; keep one']],
];

describe('a configuration with a mistake', () => {
  test.each(mistakes)('is refused for %s', (_what, text, expected) => {
    expect(complaints(`${minimal}${text}\n`)).toEqual(expected);
  });

  test.each([
    ['a wrong version', 'v1', 'v2', ['1:13: apiVersion: must be "leasehold.dev/v1"; write it so']],
    ['a wrong kind', 'kind: Config', 'kind: Policy', ['2:7: kind: must be "Config"; write it so']],
    [
      'no issuer',
      '{ issuer: https://broker.acme.test }',
      '{}',
      ['3:1: broker: "issuer" is missing; add issuer: URL of this broker, the `iss` of its tokens'],
    ],
    [
      'an issuer over http',
      'https://broker',
      'http://broker',
      ['3:19: broker.issuer: is not an https URL; http is allowed on loopback only'],
    ],
    [
      'an issuer with a login',
      'https://broker',
      'https://u:p@broker',
      ['3:19: broker.issuer: has a login in it; a secret may not be written in this file'],
    ],
    [
      'an issuer with a query',
      'broker.acme.test',
      'broker.acme.test?a',
      ['3:19: broker.issuer: may have no query and no fragment'],
    ],
    ['an issuer that is no URL', 'https://broker.acme.test', 'broker', ['3:19: broker.issuer: is not an https URL']],
    [
      'nobody who could call',
      '{ trustDomains: [{ name: acme.test, bundle: { file: bundle.json } }] }',
      '{}',
      [
        '4:1: attestation: names no trust domain and no OIDC issuer, so that nobody could call; add trustDomains or oidc',
      ],
    ],
    [
      'a SPIFFE ID for a trust domain',
      'name: acme.test',
      'name: spiffe://acme.test',
      [
        '4:39: attestation.trustDomains[0].name: must be a trust domain name: lower-case letters, digits, ".", "_" and "-"; write it without spiffe://',
      ],
    ],
    [
      'two bundles',
      'file: bundle.json',
      'file: bundle.json, url: https://x.test',
      ['4:50: attestation.trustDomains[0].bundle: needs exactly one of file, url; say one of them, and only one'],
    ],
    [
      'a bundle over http',
      'file: bundle.json',
      'url: http://127.0.0.1',
      ['4:65: attestation.trustDomains[0].bundle.url: is not an https URL'],
    ],
    [
      'a CA for a file',
      'file: bundle.json',
      'file: bundle.json, caFile: c',
      ['4:87: attestation.trustDomains[0].bundle.caFile: has no effect with a bundle file; remove it, or use url'],
    ],
    [
      'too much skew',
      'attestation: {',
      'attestation: { clockSkew: 61s,',
      ['4:27: attestation.clockSkew: 1m1s is outside 0s to 60s; it means: tolerance for clocks that differ'],
    ],
    [
      'a trust domain twice',
      '[{ name: acme.test,',
      '[{ name: acme.test, bundle: { file: b } }, { name: acme.test,',
      ['4:81: attestation.trustDomains[1].name: "acme.test" is configured twice'],
    ],
    ['no policy', 'policy: { directory: policy }\n', '', ['1:1: "policy" is missing; add policy: where policy is']],
  ] as [string, string, string, string[]][])('is refused for %s', (_what, from, to, expected) => {
    expect(complaints(minimal.replace(from, to))).toEqual(expected);
  });

  test.each([
    [
      'a template that names no claim',
      'workload: spiffe://acme.test/ci/all',
      ['6:3: attestation.oidc[0].workload: names no claim, so that every token would be the same workload'],
    ],
    [
      'a template with two claims in a segment',
      'workload: "spiffe://acme.test/{a}{b}"',
      ['6:3: attestation.oidc[0].workload: a segment is literal (A-Z a-z 0-9 . _ -) with at most one {claim}'],
    ],
    [
      'a key set over http',
      'workload: "{sub}", jwksUri: http://keys.test',
      ['6:3: attestation.oidc[0].jwksUri: is not an https URL; http is allowed on loopback only'],
    ],
    [
      'a claim without values',
      'workload: "{sub}", requiredClaims: { a: [] }',
      [
        '6:3: attestation.oidc[0].requiredClaims.a: must be a value or a list of at least one value; say one of them, and only one',
      ],
    ],
  ] as [string, string, string[]][])('is refused for %s of an OIDC issuer', (_what, fields, expected) => {
    const text = minimal.replace(
      'attestation: {',
      `attestation: { oidc: [\n  { issuer: https://ci.test, ${fields} }],`,
    );
    // Columns differ from case to case here; the line and the field are what matters.
    expect(complaints(text).map((line) => line.replace(/^5:\d+:/, '6:3:'))).toEqual(expected);
  });

  test('shows every mistake of the file at once, in the order of the file', () => {
    const text = `${minimal}server: { grpc: { listen: 0.0.0.0:1 }, limits: { burst: many } }
tasks: { defaultTtl: 2d }
lgo: {}
`;
    expect(complaints(text).map((line) => line.split(': ')[1])).toEqual([
      'server.grpc.listen',
      'server.limits.burst',
      'tasks.defaultTtl',
      'lgo',
    ]);
  });

  test('never repeats a secret that was written into it', () => {
    const text = `${minimal}database: { url: "postgres://u:hunter2@h/d" }
keys: { sealingKey: hunter2 }
targets: { w: { kind: postgres, host: h, database: d, user: u, password: hunter2, secret: hunter2, port: hunter2 } }
`;
    expect(complaints(text).join('\n')).not.toContain('hunter2');
    expect(complaints(text)).toHaveLength(6);
  });
});

describe('a file that is no configuration', () => {
  test.each([
    ['nothing', '', '1:1: holds no document'],
    ['only comments', '# soon\n', '1:1: holds no document'],
    ['too much', `# ${'x'.repeat(300_000)}`, '1:1: is larger than 262144 bytes'],
    ['text', 'hello', '1:1: must be a map of fields, not a string; it means: how one broker runs'],
  ])('is refused when it holds %s', (_what, text, expected) => {
    expect(complaints(text)).toEqual([expected]);
  });

  test.each([
    ['brackets', `a: ${'['.repeat(100_000)}`],
    ['lists', '- '.repeat(100_000)],
    ['maps', Array.from({ length: 400 }, (_, depth) => `${' '.repeat(depth)}a:`).join('\n')],
  ])('is refused, and the process lives, when %s are nested without end', (_what, text) => {
    expect(complaints(text)).toHaveLength(1);
    expect(complaints(text)[0]).toMatch(
      /: nested too deeply \(limit 32 levels\); look for a bracket that is not closed$/,
    );
  });

  test('is refused when its aliases multiply', () => {
    const levels = Array.from({ length: 12 }, (_, n) => `a${n}: &a${n} [${n === 0 ? 1 : Array(9).fill(`*a${n - 1}`)}]`);
    expect(complaints(levels.join('\n'))).toEqual(['1:1: uses too many aliases; write the values out']);
  });

  test('is refused when it does not exist, or is a folder', () => {
    const folder = temporaryFolder();
    expect(() => loadConfig({ path: path.join(folder, 'none.yaml'), env: {} })).toThrow(
      /none\.yaml:1:1: does not exist; give the path of a leasehold\.yaml$/,
    );
    expect(() => loadConfig({ path: folder, env: {} })).toThrow(/:1:1: is not a file$/);
  });
});
