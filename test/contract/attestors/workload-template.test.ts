import fc from 'fast-check';
import { describe, expect, test } from 'vitest';
import { compileWorkloadTemplate } from '../../../src/attestors/oidc/workload-template.ts';
import { parseSpiffeId } from '../../../src/attestors/spiffe-id.ts';

describe('the workload template', () => {
  test.each([
    [{ sub: 'alice' }, 'alice'],
    [{ sub: 'my_repo' }, 'my__repo'],
    [{ sub: 'a/b' }, 'a_2fb'],
    [{ sub: 'a_2fb' }, 'a__2fb'],
    [{ sub: 'repo:octo/app:ref' }, 'repo_3aocto_2fapp_3aref'],
    [{ sub: '%2e%2e' }, '_252e_252e'],
    [{ sub: '..' }, '_2e_2e'],
    [{ sub: '.' }, '_2e'],
    [{ sub: '_2e' }, '__2e'],
    [{ sub: '...' }, '...'],
    [{ sub: 'é' }, '_c3_a9'],
    [{ sub: '🦊' }, '_f0_9f_a6_8a'],
    [{ sub: 42 }, '42'],
  ])('writes %j as the segment %s', (claims, segment) => {
    expect(compileWorkloadTemplate('spiffe://acme.test/{sub}')(claims)).toBe(`spiffe://acme.test/${segment}`);
  });

  const text = fc.string({
    unit: fc.oneof(fc.constantFrom(...'/._-%2fe:'), fc.string({ unit: 'binary', minLength: 1, maxLength: 1 })),
    minLength: 1,
    maxLength: 12,
  });

  test('gives different workloads for different claims, each a valid SPIFFE ID with the template’s own segments', () => {
    const render = compileWorkloadTemplate('spiffe://acme.test/x/{a}/pre-{b}.post/{c}');
    const claims = fc.record({ a: text, b: text, c: text });
    fc.assert(
      fc.property(claims, claims, (one, other) => {
        const workload = render(one);
        const same = one.a === other.a && one.b === other.b && one.c === other.c;
        expect(workload === render(other)).toBe(same);
        expect(parseSpiffeId(workload)?.trustDomain).toBe('acme.test');
        expect(workload.split('/')).toHaveLength(7);
      }),
      { numRuns: 2_000 },
    );
  });

  test.each([undefined, null, '', true, 1.5, 2 ** 53, ['x'], { x: 1 }])('refuses the claim value %j', (sub) => {
    expect(() => compileWorkloadTemplate('{sub}')({ sub })).toThrow(/no claim `sub`/);
  });

  test('refuses a workload longer than a SPIFFE ID may be', () => {
    const render = compileWorkloadTemplate('spiffe://acme.test/{sub}');
    expect(render({ sub: 'a'.repeat(2029) })).toHaveLength(2048);
    expect(() => render({ sub: 'a'.repeat(2030) })).toThrow(/longer than 2048/);
  });

  test.each([
    ['two claims in one segment, which could be divided in two ways', 'spiffe://acme.test/{a}-{b}'],
    ['a claim in the trust domain', 'spiffe://{a}/x'],
    ['an empty segment', 'spiffe://acme.test//{a}'],
    ['a trailing slash', 'spiffe://acme.test/{a}/'],
    ['a dot segment', 'spiffe://acme.test/../{a}'],
    ['percent-encoding', 'spiffe://acme.test/%61/{a}'],
    ['a brace that is not closed', 'spiffe://acme.test/{a'],
    ['an empty name', 'spiffe://acme.test/{}'],
    ['braces in braces', 'spiffe://acme.test/{{a}}'],
    ['another scheme', 'https://acme.test/{a}'],
    ['an upper-case trust domain', 'spiffe://Acme.test/{a}'],
    ['no claim at all', 'spiffe://acme.test/x'],
    ['a blank before a claim', 'spiffe://acme.test/a b{x}'],
    ['percent-encoding after a claim', 'spiffe://acme.test/{x}%2f'],
    ['nothing', ''],
  ])('refuses %s', (_what, template) => {
    expect(() => compileWorkloadTemplate(template)).toThrow(/workload template/);
  });

  test('says that another scheme is the fault', () => {
    expect(() => compileWorkloadTemplate('https://acme.test/{a}')).toThrow(/use no scheme/);
  });
});
