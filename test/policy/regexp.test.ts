import { describe, expect, test } from 'vitest';
import { regexpFault } from '../../src/policy/regexp-check.ts';

describe('a regular expression of a condition', () => {
  test.each([
    '^CHG-[0-9]+$',
    '^[a-z0-9-]+/[a-z0-9-]+$',
    '^(prod|staging)$',
    '^https?://',
    '^[0-9]{4}-[0-9]{2}-[0-9]{2}$',
    '\\.md$',
    '^(?:ab){3}$',
    '^v[0-9]+\\.[0-9]+\\.[0-9]+$',
    '[)(*+]',
    '\\(a\\)+',
  ])('%s may be used', (pattern) => {
    expect(regexpFault(pattern)).toBeUndefined();
  });

  test.each([
    ['(a+)+', /repeats a group/],
    ['(a*)*', /repeats a group/],
    ['(a|a)*', /repeats a group/],
    ['((a+)b)+', /repeats a group/],
    ['(?:a?){30}', /repeats a group/],
    ['(a|aa){20}', /repeats a group/],
    ['(a{1,9}){9}', /repeats a group/],
    ['a?a?a?a?a?a?a?', /too many alternatives/],
    ['^(a|b)(a|b)(a|b)(a|b)(a|b)(a|b)(a|b)$', /too many alternatives/],
    ['a*a*a*', /too many places/],
    ['^a*a*a*a*', /too many places/],
    ['^a{1,}b{2,9}c+d*', /too many places/],
    ['^a*|b*a*a*', /too many places/],
    ['(a)\\1', /refers back/],
    ['(?<n>a)\\k<n>', /group other than/],
    ['(?=a)', /group other than/],
    ['(?!a)', /group other than/],
    ['(?<=a)', /group other than/],
    ['[', /not a regular expression/],
    ['a'.repeat(257), /longer than 256/],
  ])('%s may not', (pattern, why) => {
    expect(regexpFault(pattern)).toMatch(why);
  });
});
